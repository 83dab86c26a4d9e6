"""GQA: questions made of scene graphs.

Source: Hudson and Manning 2019, "GQA".
"""

from __future__ import annotations

from pathlib import Path

from lapilli.eval.files import Row, find, picture, read_json
from lapilli.eval.task import SHORT, Task
from lapilli.messages import Question

SOURCE = "https://cs.stanford.edu/people/dorarad/gqa/download.html"
FILES = ("testdev_balanced_questions.json", "val_balanced_questions.json")


def read(folder: Path) -> list[Question]:
    """The balanced questions of testdev, or of val, by the structure of the question."""
    path = find(folder, *FILES, source=SOURCE)
    questions = []
    for number, content in Row(str(path), read_json(path)).items():
        row = Row(f"{path}, question {number}", content)
        image = picture(folder / "images", f"{row['imageId']}.jpg")
        kind = row.get("types", {}).get("structural", "")
        questions.append(Question(number, image, row["question"], row["answer"], kind))
    return questions


def score(question: Question, answer: str) -> float:
    """1.0 if the answer is the reference in lower case, without a trailing full stop."""
    return float(answer.strip().rstrip(".").lower() == question.answer.lower())


GQA = Task("gqa", read, score, ending=SHORT)
