"""From what callers and records hold to a checked `Conversation`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from lapilli.errors import DataError, PromptError
from lapilli.messages import IMAGE_MARK, Conversation, ImagePart, Message, Part, Role, TextPart

_ROLES = get_args(Role)


def parse_marks(text: str, images: Sequence[Any]) -> tuple[Part, ...]:
    """Split a turn of a LLaVA record at its `<image>` marks.

    A single picture goes to the front, as in LLaVA's training; several keep their places. The
    line break after a mark is the template's and is dropped. Only for records: in what a user
    types, `<image>` is text.

    Args:
        text: the turn's value.
        images: one source for each mark, in order.

    Raises:
        DataError: the counts of marks and images differ.
    """
    pieces = text.split(IMAGE_MARK)
    num_marks = len(pieces) - 1
    if num_marks != len(images):
        raise DataError(_count_mismatch(num_marks, len(images)))
    if num_marks == 1:
        words = "".join(pieces).strip()
        return (ImagePart(images[0]), *([TextPart(words)] if words else []))
    parts: list[Part] = [TextPart(pieces[0])] if pieces[0] else []
    for source, piece in zip(images, pieces[1:], strict=True):
        parts.append(ImagePart(source))
        if words := piece.removeprefix("\n"):
            parts.append(TextPart(words))
    return tuple(parts)


def as_conversation(
    messages: Sequence[Mapping[str, Any]] | Conversation, images: Sequence[Any] | None = None
) -> Conversation:
    """Check messages in the OpenAI form and turn them into a conversation.

    Args:
        messages: `{"role", "content"}` with content a string or a list of `text`, `image_url`
            and `image` parts; or a conversation.
        images: pictures for the `<image>` marks in users' strings and for image parts without a
            source, in order. Without it, a mark in a string is text.

    Raises:
        PromptError: a role or a shape is wrong, a user's turn is empty, or the counts of places
            and images differ.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise PromptError(
            f"messages: a list is needed, this is {_type(messages)}. Put the message in a list."
        )
    if not messages:
        raise PromptError("messages: the list is empty. Add a user message.")
    if images is not None and (isinstance(images, str | bytes) or not isinstance(images, Sequence)):
        raise PromptError(
            f"images: a list is needed, this is {_type(images)}. Put the picture in a list."
        )
    conversation = tuple(
        _as_message(f"message {number}", message, images is not None)
        for number, message in enumerate(messages, start=1)
    )
    if images is None:
        return conversation
    places = [part for turn in conversation for part in turn.parts if _is_open(part)]
    if len(places) != len(images):
        raise PromptError(_count_mismatch(len(places), len(images)))
    sources = iter(images)
    return tuple(
        Message(
            turn.role,
            tuple(ImagePart(next(sources)) if _is_open(part) else part for part in turn.parts),
        )
        for turn in conversation
    )


def _as_message(where: str, message: Any, has_images: bool) -> Message:
    role: Any
    parts: tuple[Part, ...]
    if isinstance(message, Message):
        role, parts = message.role, message.parts
    elif isinstance(message, Mapping):
        role = message.get("role")
        if role not in _ROLES:
            raise PromptError(f"{where}: role {role!r} is unknown. Use {', '.join(_ROLES)}.")
        content = message.get("content")
        if isinstance(content, str):
            marks = content.count(IMAGE_MARK) if has_images and role == "user" else 0
            parts = parse_marks(content, [None] * marks) if marks else (TextPart(content),)
        elif isinstance(content, Sequence) and not isinstance(content, bytes):
            parts = tuple(_as_part(where, part) for part in content)
        else:
            raise PromptError(
                f"{where}: content is {_type(content)}. Give a string or a list of parts."
            )
    else:
        raise PromptError(f"{where}: {_type(message)} instead of a message. Give role and content.")
    result = Message(role, parts)
    if role == "user" and not result.images and not result.text.strip():
        raise PromptError(f"{where}: the user says nothing. Ask a question or add a picture.")
    return result


def _as_part(where: str, part: Any) -> Part:
    kind = part.get("type") if isinstance(part, Mapping) else _type(part)
    if kind == "text" and isinstance(part.get("text"), str):
        return TextPart(part["text"])
    if kind == "image":
        return ImagePart(part.get("image"))
    if kind == "image_url":
        address = part.get("image_url")
        source = address.get("url") if isinstance(address, Mapping) else address
        if isinstance(source, str):
            return ImagePart(source)
    raise PromptError(
        f"{where}: a content part of type {kind!r} cannot be read. Use text with a string, "
        "image_url with a url, or image."
    )


def _is_open(part: Part) -> bool:
    return isinstance(part, ImagePart) and part.source is None


def _type(value: object) -> str:
    return type(value).__name__


def _count_mismatch(num_marks: int, num_images: int) -> str:
    plural_marks, plural_images = "s" * (num_marks != 1), "s" * (num_images != 1)
    remedy = "Add an image or remove a mark." if num_marks > num_images else (
        "Add a mark or remove an image."
    )  # fmt: skip
    return (
        f"{num_marks} {IMAGE_MARK} mark{plural_marks}, {num_images} image{plural_images}. {remedy}"
    )
