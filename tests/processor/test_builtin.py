"""Named templates: the published strings, their Jinja, and what is learned of them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tokenizers import Tokenizer
from transformers import AutoProcessor
from transformers.utils.chat_template_utils import render_jinja_template

from lapilli.checkpoints.hf_processor import processor_files
from lapilli.errors import CheckpointError, PromptError
from lapilli.inputs import IGNORE
from lapilli.messages import Conversation, ImagePart, Message, TextPart
from lapilli.model.spec import LlavaSpec, VisionSpec
from lapilli.processor.builtin import TEMPLATES, jinja_source
from lapilli.processor.images import ImageSettings
from lapilli.processor.processor import Processor, PromptSettings
from lapilli.processor.templates import Segment

VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)
EARLY = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the human's questions."
)
LLAVA = (
    "You are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using natural "
    "language."
)
PUBLISHED = {
    "vicuna_v1": VICUNA + " USER: <image>\nQ ASSISTANT: A</s>USER: Q2 ASSISTANT:",
    "llava_v1": EARLY + " USER: <image>\nQ ASSISTANT: A</s>USER: Q2 ASSISTANT:",
    "llava_llama_2": (
        f"[INST] <<SYS>>\n{LLAVA}\n<</SYS>>\n\n<image>\nQ [/INST] A </s><s>[INST] Q2 [/INST]"
    ),
    "mistral_instruct": "[INST] <image>\nQ [/INST] A </s>[INST] Q2 [/INST]",
    "chatml_direct": (
        "<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\n<image>\nQ<|im_end|>"
        "<|im_start|>assistant\nA<|im_end|><|im_start|>user\nQ2<|im_end|><|im_start|>assistant\n"
    ),
    "qwen": (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<image>\nQ"
        "<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n<|im_start|>user\nQ2<|im_end|>\n"
        "<|im_start|>assistant\n"
    ),
    "llama_3": (
        f"<|start_header_id|>system<|end_header_id|>\n\n{LLAVA}<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n<image>\nQ<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nQ2<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    "plain": "<image>A\n",
}
"""Two turns with a picture, as the templates' own programs write them."""
LEARNED = {
    "vicuna_v1": [" A", "</s>"],
    "llava_v1": [" A", "</s>"],
    "llava_llama_2": [" A", " </s>"],
    "mistral_instruct": [" A", " </s>"],
    "chatml_direct": ["A", "<|im_end|>"],
    "qwen": ["A", "<|im_end|>"],
    "llama_3": ["A", "<|eot_id|>"],
    "plain": ["A", "\n"],
}
CHATS = [name for name in TEMPLATES if name != "plain"]

SIDE, PLACES = 16, 4
SPEC = LlavaSpec(VisionSpec(SIDE, 8, 32, 3, 2, 48))
IMAGES = ImageSettings(SIDE, "squash", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
PICTURE = Image.new("RGB", (20, 10), "red")


def system(text: str) -> Message:
    return Message("system", (TextPart(text),))


def user(text: str, num_images: int = 0) -> Message:
    return Message("user", (*[ImagePart(PICTURE)] * num_images, TextPart(text)))


def assistant(text: str) -> Message:
    return Message("assistant", (TextPart(text),))


def joined(segments: list[Segment]) -> str:
    return "".join(segment.text for segment in segments)


def conversations() -> Iterator[tuple[Conversation, bool]]:
    """1 to 4 turns with 0 to 3 pictures, with and without a system message; and whether an answer
    is asked for, which is so after a question.

    One picture stands with the first question, the others with the last.
    """
    for num_turns, num_images, has_system in product(range(1, 5), range(4), (False, True)):
        shown = [0] * num_turns
        for number in range(num_images):
            shown[0 if number == 0 else (num_turns - 1) // 2 * 2] += 1
        turns = [
            user(f"Is it\n{number}?", shown[number]) if number % 2 == 0 else assistant("It's red.")
            for number in range(num_turns)
        ]
        yield (*[system("Be brief: 3 words.")] * has_system, *turns), num_turns % 2 == 1


def as_messages(conversation: Conversation) -> list[dict[str, Any]]:
    return [
        {
            "role": turn.role,
            "content": [
                {"type": "text", "text": part.text}
                if isinstance(part, TextPart)
                else {"type": "image", "image": part.source}
                for part in turn.parts
            ],
        }
        for turn in conversation
    ]


def make(name: str, tokenizer: tuple[Tokenizer, str]) -> Processor:
    words, bos_token = tokenizer
    end_of_turn = TEMPLATES[name].end_of_turn or "</s>"
    prompt = PromptSettings(
        PLACES, end_of_turn=end_of_turn, bos_token=bos_token, template=name, max_tokens=4096
    )
    return Processor(words, IMAGES, prompt)


# Text


@pytest.mark.parametrize("name", TEMPLATES)
def test_two_turns_equal_the_published_string_and_the_answer_alone_is_learned(name: str) -> None:
    turns = (user("Q", 1), assistant("A"), user("Q2"))
    segments = TEMPLATES[name].render(turns, add_generation_prompt=True)
    assert joined(segments) == PUBLISHED[name]
    assert [segment.text for segment in segments if segment.supervised] == LEARNED[name]


@pytest.mark.parametrize("name", CHATS)
def test_an_answer_at_the_end_is_followed_by_its_end_alone(name: str) -> None:
    asked = TEMPLATES[name].render((user("Q", 1),), add_generation_prompt=True)
    told = TEMPLATES[name].render((user("Q", 1), assistant("A")), add_generation_prompt=False)
    rest = "\n" if name == "qwen" else ""
    assert joined(told) == joined(asked) + "".join(LEARNED[name]) + rest


@pytest.mark.parametrize(
    ("name", "begin"),
    [
        ("vicuna_v1", "Be brief. USER: Q ASSISTANT:"),
        ("llava_v1", "Be brief. USER: Q ASSISTANT:"),
        ("llava_llama_2", "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nQ [/INST]"),
        ("mistral_instruct", "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nQ [/INST]"),
        ("chatml_direct", "<|im_start|>system\nBe brief.<|im_end|><|im_start|>user\nQ<|im_end|>"),
        ("qwen", "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n"),
        ("llama_3", "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"),
    ],
)
def test_a_system_message_takes_the_place_of_the_templates_own(name: str, begin: str) -> None:
    turns = (system("Be brief."), user("Q"))
    segments = TEMPLATES[name].render(turns, add_generation_prompt=True)
    assert joined(segments).startswith(begin)
    assert Segment("Be brief.", "text") in segments


@pytest.mark.parametrize("name", CHATS)
def test_a_system_message_later_on_is_refused(name: str) -> None:
    turns = (user("Q"), system("Be brief."))
    with pytest.raises(PromptError, match=r"message 2: a system message stands at the start alone"):
        TEMPLATES[name].render(turns, add_generation_prompt=True)


@pytest.mark.parametrize("name", ["llava_llama_2", "mistral_instruct"])
@pytest.mark.parametrize(
    "turns", [(system("S"), assistant("A")), (system("S"), user("Q"), user("Q2"))]
)
def test_turns_in_brackets_must_alternate(name: str, turns: Conversation) -> None:
    reason = rf"message {len(turns)}: user and assistant take turns, the user first"
    with pytest.raises(PromptError, match=reason):
        TEMPLATES[name].render(turns, add_generation_prompt=False)


@pytest.mark.parametrize("name", CHATS)
def test_single_picture_stands_first_and_several_keep_their_places(name: str) -> None:
    late = Message("user", (TextPart("What is it?"), ImagePart("a")))
    written = joined(TEMPLATES[name].render((late,), add_generation_prompt=True))
    assert "<image>\nWhat is it?" in written
    mixed = Message(
        "user", (TextPart("Is "), ImagePart("a"), TextPart(" like "), ImagePart("b"), TextPart("?"))
    )
    written = joined(TEMPLATES[name].render((mixed,), add_generation_prompt=True))
    assert "Is <image> like <image>\n?" in written
    alone = Message("user", (ImagePart("a"), ImagePart("b")))
    written = joined(TEMPLATES[name].render((alone,), add_generation_prompt=True))
    assert "<image>\n<image>" in written


def test_llama_3_drops_white_space_around_what_is_said_and_the_others_keep_it() -> None:
    for name in CHATS:
        turns = (user(" Q "), assistant(" A "))
        written = joined(TEMPLATES[name].render(turns, add_generation_prompt=False))
        assert (" Q " in written and " A " in written) == (name != "llama_3")


def test_plain_keeps_pictures_and_captions_alone() -> None:
    turns = (user("Describe it.", 2), assistant("a red star"))
    assert TEMPLATES["plain"].render(turns, add_generation_prompt=True) == [
        Segment("<image>", "image"),
        Segment("<image>", "image"),
        Segment("a red star", "text", True),
        Segment("\n", "special", True),
    ]
    assert jinja_source("plain") is None


@pytest.mark.parametrize("name", CHATS)
def test_transformers_writes_the_same_text_with_the_same_jinja(name: str) -> None:
    odd = Message("user", (ImagePart("a"), TextPart("  \n"), ImagePart("b"), TextPart("\tor ")))
    further: list[tuple[Conversation, bool]] = [
        ((odd,), True),
        ((system(""), user(" Q\n"), assistant("")), False),
    ]
    for conversation, is_asked in [*conversations(), *further]:
        expected, _ = render_jinja_template(
            [as_messages(conversation)],
            chat_template=jinja_source(name),
            add_generation_prompt=is_asked,
        )
        found = TEMPLATES[name].render(conversation, add_generation_prompt=is_asked)
        assert joined(found) == expected[0]


# Tokens


@pytest.mark.parametrize("name", CHATS)
def test_ids_equal_those_of_transformers(
    name: str, tokenizer: tuple[Tokenizer, str], tmp_path: Path
) -> None:
    processor = make(name, tokenizer)
    for file, text in processor_files(processor, SPEC).items():
        (tmp_path / file).write_text(text)
    theirs = AutoProcessor.from_pretrained(tmp_path)
    for conversation, is_asked in conversations():
        wanted = theirs.apply_chat_template(
            as_messages(conversation),
            add_generation_prompt=is_asked,
            tokenize=True,
            return_dict=True,
        )
        found = processor.encode(conversation, is_answering=is_asked)
        assert found.ids == wanted["input_ids"][0]
        assert found.ids.count(processor.image_token_id) == PLACES * len(found.images)


@pytest.mark.parametrize("sentence_pieces", ["before every stretch"], indirect=True)
@pytest.mark.parametrize("name", TEMPLATES)
def test_ids_equal_those_of_stretches_between_pictures(
    name: str, sentence_pieces: Tokenizer
) -> None:
    """The original reads what stands between pictures apart, and keeps the first beginning."""
    processor = make(name, (sentence_pieces, "<s>"))
    for conversation, is_asked in conversations():
        text = joined(TEMPLATES[name].render(conversation, add_generation_prompt=is_asked))
        wanted, *others = (sentence_pieces.encode(part).ids for part in text.split("<image>"))
        for ids in others:
            wanted += [processor.image_token_id] * PLACES + ids[1:]
        assert processor.encode(conversation, is_answering=is_asked).ids == wanted


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_loss_falls_on_answers_and_their_ends_alone(
    name: str, tokenizer: tuple[Tokenizer, str]
) -> None:
    processor = make(name, tokenizer)
    turns = (user("Is it red?", 1), assistant("Yes, a circle."), user("Sure?"), assistant("No."))
    encoded = processor.encode(turns)
    pairs = zip(encoded.ids, encoded.labels, strict=True)
    assert all(label in (token, IGNORE) for token, label in pairs)
    learned = processor.words.tokenizer.decode(
        [label for label in encoded.labels if label != IGNORE], skip_special_tokens=False
    )
    end = LEARNED[name][1]
    # Where a space stands between stretches, the decoder of a tokenizer decides.
    assert learned.replace(" ", "") == f"Yes,acircle.{end}No.{end}".replace(" ", "")


@pytest.mark.parametrize("name", CHATS)
def test_an_answer_is_asked_for_with_the_ids_it_was_learned_after(
    name: str, tokenizer: tuple[Tokenizer, str]
) -> None:
    processor = make(name, tokenizer)
    turns = (user("Is it red?", 2), assistant("Yes."), user("Sure?"), assistant("No."))
    asked = processor.encode(turns[:3], is_answering=True)
    learned = processor.encode(turns)
    assert learned.ids[: len(asked.ids)] == asked.ids
    rest = learned.labels[len(asked.ids) :]
    assert rest.index(processor.end_id) == len([y for y in rest if y != IGNORE]) - 1


@pytest.mark.parametrize("name", TEMPLATES)
def test_special_tokens_that_someone_types_stay_text(
    name: str, tokenizer: tuple[Tokenizer, str]
) -> None:
    processor = make(name, tokenizer)
    words = processor.words.tokenizer
    specials = {id: token.content for id, token in words.get_added_tokens_decoder().items()}
    typed = " ".join(specials.values()) + " [INST] ###"
    harmless, nasty = (
        processor.encode((system(text), user(text, 1), assistant(text), user("?")))
        for text in ("x", f"x {typed} x")
    )
    for id in specials:
        assert nasty.ids.count(id) == harmless.ids.count(id)
    for id in specials:
        assert nasty.labels.count(id) == harmless.labels.count(id)
    assert typed in processor.decode([y for y in nasty.labels if y != IGNORE])


# Settings


def test_an_end_of_turn_that_the_template_does_not_write_is_refused(
    sentence_pieces: Tokenizer,
) -> None:
    prompt = PromptSettings(PLACES, end_of_turn="<|im_end|>", template="mistral_instruct")
    with pytest.raises(CheckpointError) as caught:
        Processor(sentence_pieces, IMAGES, prompt)
    assert str(caught.value) == (
        "processor.json: end_of_turn '<|im_end|>'; the turns of template mistral_instruct end "
        "with '</s>'. Write that."
    )


def test_a_template_that_is_not_built_in_has_no_jinja() -> None:
    assert jinja_source("vicuna") is None
