from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

import lapilli.assistant
from lapilli.assistant import MultimodalAssistant
from lapilli.checkpoints.loading import embedded_folder
from lapilli.errors import CheckpointError, ImageError
from lapilli.messages import Conversation, ImagePart, Message, Piece, Sampling, TextPart


class Parrot:
    """A responder that says how many pictures it sees and what was said last."""

    asked: list[Conversation]
    samplings: list[Sampling]

    def __init__(self, *_: Any, settings: Any = None) -> None:
        self.asked, self.samplings = [], []

    def respond(self, conversations: Sequence[Conversation], sampling: Sampling) -> Iterator[Piece]:
        self.asked += conversations
        self.samplings.append(sampling)
        for index, conversation in reversed(list(enumerate(conversations))):
            seen = sum(len(message.images) for message in conversation)
            for text in (" ", f" {seen} seen: ", f"{conversation[-1].text} ", "\n"):
                yield Piece(index, text)
            if "fail" in conversation[-1].text:
                raise ImageError("bad.png: not a picture")


@pytest.fixture
def assistant(monkeypatch: pytest.MonkeyPatch) -> MultimodalAssistant:
    monkeypatch.setattr(lapilli.assistant, "load", lambda *_, **__: (None, None))
    monkeypatch.setattr(lapilli.assistant, "Engine", Parrot)
    return MultimodalAssistant()


def test_answer_comes_without_the_white_space_around_it(assistant: MultimodalAssistant) -> None:
    assert assistant.query("a.png", "What?") == "1 seen: What?"
    assert assistant.query(["a.png", Path("b.png")], "What?") == "2 seen: What?"
    assert assistant.query([], "What?") == "0 seen: What?"


def test_pictures_stand_before_the_words(assistant: MultimodalAssistant) -> None:
    assistant.query(["a.png", b"bytes"], "What?")
    turn = Message("user", (ImagePart("a.png"), ImagePart(b"bytes"), TextPart("What?")))
    assert assistant.engine.asked == [(turn,)]


def test_stream_is_the_answer_in_pieces(assistant: MultimodalAssistant) -> None:
    pieces = list(assistant.stream("a.png", "two words"))
    assert pieces == ["1 seen:", " two words"]
    assert "".join(pieces) == assistant.query("a.png", "two words")


def test_many_answers_come_in_the_order_of_the_questions(assistant: MultimodalAssistant) -> None:
    requests = [("a.png", "one"), (["a.png", "b.png"], "two"), ([], "three")]
    assert assistant.query_many(requests) == ["1 seen: one", "2 seen: two", "0 seen: three"]
    assert assistant.query_many([]) == []


def test_sampling_reaches_the_engine(assistant: MultimodalAssistant) -> None:
    assistant.query("a.png", "?", max_new_tokens=7, temperature=0.5)
    assistant.query_many([("a.png", "?")], max_new_tokens=8)
    assert assistant.engine.samplings == [Sampling(7, 0.5), Sampling(8, 0.0)]


def test_chat_keeps_what_was_said(assistant: MultimodalAssistant) -> None:
    chat = assistant.chat("a.png")
    assert chat.say("first") == "1 seen: first"
    assert "".join(chat.stream("second", "b.png")) == "2 seen: second"
    assert chat.messages == [
        Message("user", (ImagePart("a.png"), TextPart("first"))),
        Message("assistant", (TextPart("1 seen: first"),)),
        Message("user", (ImagePart("b.png"), TextPart("second"))),
        Message("assistant", (TextPart("2 seen: second"),)),
    ]


def test_chat_goes_on_after_a_turn_that_failed(assistant: MultimodalAssistant) -> None:
    chat = assistant.chat("a.png")
    with pytest.raises(ImageError):
        chat.say("fail", "b.png")
    assert chat.messages == []
    assert chat.say("again") == "1 seen: again"


needs_weights = pytest.mark.skipif(
    not (embedded_folder() / "model.safetensors").exists(),
    reason="the embedded model's weights are not in this checkout",
)


@pytest.fixture(scope="module")
def embedded() -> MultimodalAssistant:
    return MultimodalAssistant(device="cpu")


@pytest.fixture(scope="module")
def red_circle() -> Image.Image:
    image = Image.new("RGB", (256, 256), "white")
    ImageDraw.Draw(image).ellipse((70, 70, 190, 190), fill="red")
    return image


@needs_weights
def test_embedded_model_sees_a_red_circle(
    embedded: MultimodalAssistant, red_circle: Image.Image
) -> None:
    answers = embedded.query_many(
        [
            (red_circle, "Is there a red circle?"),
            (red_circle, "Is there a blue star?"),
            (red_circle, "What color is the circle?"),
        ]
    )
    for answer, word in zip(answers, ("yes", "no", "red"), strict=True):
        assert word in answer.lower()


@needs_weights
def test_embedded_model_answers_alike_alone_and_in_a_batch(
    embedded: MultimodalAssistant, red_circle: Image.Image
) -> None:
    requests = [
        (red_circle, "Describe the picture."),
        ([], "Is there a red circle?"),
        ([red_circle, red_circle], "What is this?"),
    ]
    assert embedded.query_many(requests) == [embedded.query(*request) for request in requests]


def test_model_that_is_not_there_is_said() -> None:
    with pytest.raises(CheckpointError, match="no-such-model: neither a model folder nor a known"):
        MultimodalAssistant("no-such-model")
