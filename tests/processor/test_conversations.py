"""What callers and records hold, checked and turned into conversations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lapilli.errors import DataError, PromptError
from lapilli.messages import ImagePart, Message, TextPart
from lapilli.processor.conversations import as_conversation, parse_marks


def test_single_mark_goes_to_the_front_without_its_line_break() -> None:
    expected = (ImagePart("a"), TextPart("What is it?"))
    assert parse_marks("<image>\nWhat is it?", ["a"]) == expected
    assert parse_marks("What is it?\n<image>", ["a"]) == expected
    assert parse_marks("<image>", ["a"]) == (ImagePart("a"),)
    assert parse_marks("no picture", []) == (TextPart("no picture"),)


def test_several_marks_keep_their_places() -> None:
    assert parse_marks("A <image> B <image>\nC", ["a", "b"]) == (
        TextPart("A "), ImagePart("a"), TextPart(" B "), ImagePart("b"), TextPart("C"),
    )  # fmt: skip


def test_wrong_counts_are_both_named() -> None:
    with pytest.raises(
        DataError, match=r"^2 <image> marks, 1 image\. Add an image or remove a mark\.$"
    ):
        parse_marks("<image><image>", ["a"])
    with pytest.raises(
        DataError, match=r"^0 <image> marks, 2 images\. Add a mark or remove an image\.$"
    ):
        parse_marks("nothing", ["a", "b"])
    with pytest.raises(PromptError, match=r"^1 <image> mark, 2 images\. Add a mark"):
        as_conversation([{"role": "user", "content": "<image> hm"}], ["a", "b"])


@pytest.mark.parametrize("images", ["a.png", b"bytes", Path("a.png")])
def test_a_picture_outside_of_a_list_is_refused(images: Any) -> None:
    with pytest.raises(PromptError, match="images: a list is needed, this is"):
        as_conversation([{"role": "user", "content": "<image> hm"}], images)


def test_marks_count_only_when_images_are_passed() -> None:
    messages = [{"role": "user", "content": "<image>\nWhat is it?"}]
    assert as_conversation(messages, ["a"])[0].parts == (ImagePart("a"), TextPart("What is it?"))
    assert as_conversation(messages)[0].parts == (TextPart("<image>\nWhat is it?"),)


def test_marks_in_answers_and_parts_stay_text() -> None:
    conversation = as_conversation(
        [
            {"role": "user", "content": [{"type": "text", "text": "<image>"}, {"type": "image"}]},
            {"role": "assistant", "content": "<image>"},
        ],
        ["a"],
    )
    assert conversation[0].parts == (TextPart("<image>"), ImagePart("a"))
    assert conversation[1].parts == (TextPart("<image>"),)


def test_images_fill_the_open_places_of_all_messages_in_order() -> None:
    conversation = as_conversation(
        [
            {"role": "user", "content": "<image>\none"},
            {"role": "assistant", "content": "yes"},
            {"role": "user", "content": [{"type": "image"}, {"type": "image", "image": b"own"}]},
        ],
        ["a", "b"],
    )
    assert [turn.images for turn in conversation] == [["a"], [], ["b", b"own"]]


def test_openai_image_parts_are_read_in_both_forms() -> None:
    url = "data:image/png;base64,AAAA"
    content = [
        {"type": "image_url", "image_url": {"url": url, "detail": "low"}},
        {"type": "image_url", "image_url": url},
        {"type": "text", "text": "Q"},
    ]
    (turn,) = as_conversation([{"role": "user", "content": content}])
    assert turn.parts == (ImagePart(url), ImagePart(url), TextPart("Q"))


def test_a_conversation_passes_unchanged() -> None:
    conversation = (Message("user", (ImagePart("a"), TextPart("Q"))),)
    assert as_conversation(conversation) == conversation


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ("What is it?", "messages: a list is needed, this is str"),
        ({"role": "user", "content": "Q"}, "messages: a list is needed, this is dict"),
        ([], "messages: the list is empty"),
        (["Q"], "message 1: str instead of a message"),
        ([{"content": "Q"}], "message 1: role None is unknown. Use system, user, assistant."),
        ([{"role": "human", "content": "Q"}], "message 1: role 'human' is unknown"),
        ([{"role": ["user"], "content": "Q"}], "message 1: role ['user'] is unknown"),
        ([{"role": "user"}], "message 1: content is NoneType"),
        ([{"role": "user", "content": 3}], "message 1: content is int"),
        ([{"role": "user", "content": "  \n"}], "message 1: the user says nothing"),
        ([{"role": "user", "content": []}], "message 1: the user says nothing"),
        ([{"role": "user", "content": ["Q"]}], "message 1: a content part of type 'str'"),
        ([{"role": "user", "content": [{"type": "video"}]}], "type 'video' cannot be read"),
        ([{"role": "user", "content": [{"type": "text"}]}], "type 'text' cannot be read"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": 3}]}],
            "type 'image_url'",
        ),
    ],
)
def test_wrong_shapes_are_named_with_their_message(messages: Any, reason: str) -> None:
    with pytest.raises(PromptError) as caught:
        as_conversation(messages)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
