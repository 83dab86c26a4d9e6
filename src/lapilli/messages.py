"""What is said about pictures, as data alone: messages, records, and whoever answers them.

This file imports neither torch nor Pillow, so every room can speak these types.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    from PIL.Image import Image

ImageSource: TypeAlias = "str | Path | bytes | Image"
"""A picture: a path, a data URL, encoded bytes or an opened PIL image. Never fetched from afar."""

IMAGE_MARK = "<image>"
"""Stands in a record's text where a picture goes (LLaVA JSON)."""

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class TextPart:
    """Words, taken literally: a special token typed by a user stays text."""

    text: str


@dataclass(frozen=True, slots=True)
class ImagePart:
    """A place in a message where one picture stands; None until it is given."""

    source: ImageSource | None = None


Part = TextPart | ImagePart


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: who speaks, and the words and pictures in reading order."""

    role: Role
    parts: tuple[Part, ...]

    @property
    def images(self) -> list[ImageSource | None]:
        """The sources of this message's pictures, in reading order."""
        return [part.source for part in self.parts if isinstance(part, ImagePart)]

    @property
    def text(self) -> str:
        """The words alone, joined."""
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))


Conversation = tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """One training record after reading: a conversation, and the symbols known of its picture.

    Attributes:
        id: name for messages to people.
        conversation: turns; pictures are paths inside `ImagePart`.
        images: paths of the record's pictures, in the order of their marks.
        group: records with the same non-empty group that stand next to each other share their
            common prefix (usually the picture) when they are packed.
        objects: what is in the picture, as `lapilli.synth.symbols.Thing.to_json` writes it.
        text: running text to learn as it is (books); then `conversation` is empty.
        kind: what is asked for ("count", "color"), where it is known; for reports.
    """

    id: str
    conversation: Conversation = ()
    images: tuple[Path, ...] = ()
    group: str = ""
    objects: tuple[dict[str, Any], ...] = ()
    text: str = ""
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of an answer as it is made.

    Attributes:
        index: which conversation of the call it belongs to.
        text: new characters, whole ones only.
        finish_reason: None while the answer goes on, then "stop" or "length".
        num_tokens: tokens that this piece stands for.
    """

    index: int
    text: str
    finish_reason: Literal["stop", "length"] | None = None
    num_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Sampling:
    """How an answer is drawn; temperature 0 is greedy."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


class Responder(Protocol):
    """Anything that answers conversations: an engine, a remote endpoint, a fake in a test."""

    def respond(
        self, conversations: Sequence[Conversation], sampling: Sampling = ...
    ) -> Iterator[Piece]:
        """Yield pieces of all answers, interleaved as they are made."""
        ...


@dataclass(slots=True)
class Question:
    """One question of a benchmark, with what is needed to score its answer.

    Attributes:
        id: unique within the benchmark.
        image: a path or a PIL image; None for a blind question.
        text: what is asked, without an image mark.
        answer: the reference, as text.
        category: the kind of question ("count", "colour", ...).
        extra: what a scorer needs besides (boxes, names of objects, a group).
        more_images: further pictures, shown after `image`.
    """

    id: str
    image: ImageSource | None
    text: str
    answer: str
    category: str = ""
    extra: dict[str, Any] = field(default_factory=dict)
    more_images: tuple[ImageSource, ...] = ()

    @property
    def images(self) -> tuple[ImageSource, ...]:
        """All pictures, in the order in which they are shown."""
        return self.more_images if self.image is None else (self.image, *self.more_images)
