"""Ask the embedded model about the picture beside this file.

python examples/ask.py
"""

from pathlib import Path

from lapilli import MultimodalAssistant

picture = Path(__file__).with_name("shapes.png")
assistant = MultimodalAssistant()

print(assistant.query(picture, "What is in this picture?"))

# Many questions go through together.
questions = ["How many objects are there?", "What color is the heart?"]
for question, answer in zip(
    questions, assistant.query_many([(picture, question) for question in questions]), strict=True
):
    print(f"{question} {answer}")

# A conversation remembers what was said.
chat = assistant.chat(picture)
print(chat.say("What color is the circle?"))
print(chat.say("Where is it?"))
