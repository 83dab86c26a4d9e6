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
class TokenLogprob:
    """How likely a token was before any setting of `Sampling` changed it.

    Attributes:
        token: its text, special tokens' words included.
        logprob: natural logarithm of its probability.
        top: the likeliest tokens in its place and their logarithms, likeliest first.
    """

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """What an answer took.

    Attributes:
        prompt: tokens of the prompt, pictures' places included.
        reused: those of them that earlier work had left in the cache.
        answer: tokens made, the end of turn included.
    """

    prompt: int
    reused: int
    answer: int


FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of an answer as it is made.

    Attributes:
        index: which conversation of the call, or which of several answers, it belongs to.
        text: new characters, whole ones only.
        finish_reason: None while the answer goes on; "length" where it was cut off.
        num_tokens: tokens that this piece stands for.
        logprobs: of these tokens, where they were asked for.
        usage: with the last piece of an answer, where it is known.
    """

    index: int
    text: str
    finish_reason: FinishReason | None = None
    num_tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class Format:
    """The form that an answer must have: a JSON schema, as JSON, or a regular expression."""

    kind: Literal["json_schema", "regex"]
    text: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """How an answer is drawn; the defaults are greedy.

    Attributes:
        max_new_tokens: tokens that the answer may take, its end included.
        temperature: 0 takes the likeliest token; 1 draws tokens as often as they are likely.
        top_p: only the fewest tokens that together reach this probability are drawn.
        seed: the same seed draws the same answer, alone or among others.
        top_k: only so many of the likeliest tokens are drawn; 0 for all.
        min_p: only tokens at least this likely, as a share of the likeliest, are drawn.
        repetition_penalty: above 1, tokens of the prompt and the answer come less often again.
        stop: texts that end the answer before they are told.
        stop_tokens: ids that end the answer as its end of turn does.
        num_logprobs: how many of the likeliest tokens are told with each; None for no logarithms.
        form: what the answer must look like; None for free text.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    stop_tokens: tuple[int, ...] = ()
    num_logprobs: int | None = None
    form: Format | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """One conversation to answer, perhaps several times.

    Attributes:
        conversation: ends with what is to be answered.
        sampling: how answers are drawn.
        num_answers: the seed of answer i is that of `sampling` and i more.
        text: running text to be continued as it is; then `conversation` is empty.
    """

    conversation: Conversation
    sampling: Sampling = Sampling()
    num_answers: int = 1
    text: str = ""


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
