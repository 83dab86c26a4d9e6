"""Ask about pictures: one question, many questions, or a conversation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lapilli.checkpoints.loading import load
from lapilli.engine.engine import Engine
from lapilli.engine.settings import EngineSettings
from lapilli.messages import Conversation, ImagePart, Message, Sampling, TextPart

if TYPE_CHECKING:
    import torch


class MultimodalAssistant:
    """A model with its processor and engine, ready to be asked.

    Pictures are paths, data URLs, encoded bytes or PIL images: one, or a list. All that is asked
    is greedy unless a temperature is given.

    Args:
        model: a name that `lapilli models` lists, or a model folder; None for the embedded model.
        base: the model that an adapter is put on, where `model` is one; None for the one that the
            adapter's folder names.
        device: "auto" takes a GPU where there is one.
        dtype: None computes in bfloat16 on a GPU and in float32 on a CPU.
        quantize: "int8" or "int4" keeps the language model's weights in 8 or 4 bits.
        settings: how the engine works.

    Raises:
        CheckpointError: there is no such model, or it is damaged.
        ConfigError: there is no such device, dtype or kind of smaller weights.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        base: str | Path | None = None,
        device: str = "auto",
        dtype: str | torch.dtype | None = None,
        quantize: str | None = None,
        settings: EngineSettings | None = None,
    ) -> None:
        self.model, self.processor = load(
            model, base=base, device=device, dtype=dtype, quantize=quantize
        )
        self.engine = Engine(self.model, self.processor, settings=settings)

    def query(
        self, images: Any, question: str, *, max_new_tokens: int = 256, temperature: float = 0.0
    ) -> str:
        """Return the answer to one question about one picture or several.

        Raises:
            ImageError: a picture cannot be opened.
            PromptError: the question is empty without a picture, or too long.
            EngineError: a setting is out of range.
        """
        return "".join(
            self.stream(images, question, max_new_tokens=max_new_tokens, temperature=temperature)
        )

    def query_many(
        self,
        requests: Sequence[tuple[Any, str]],
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
    ) -> list[str]:
        """Return the answers to many (pictures, question) pairs, worked on together.

        Raises: as `query`.
        """
        conversations = [(_user_turn(images, question),) for images, question in requests]
        answers = [""] * len(conversations)
        sampling = Sampling(max_new_tokens, temperature)
        for piece in self.engine.respond(conversations, sampling):
            answers[piece.index] += piece.text
        return [answer.strip() for answer in answers]

    def stream(
        self, images: Any, question: str, *, max_new_tokens: int = 256, temperature: float = 0.0
    ) -> Iterator[str]:
        """Yield the answer in pieces as it is made; together they are what `query` returns.

        Raises: as `query`.
        """
        return self._stream((_user_turn(images, question),), Sampling(max_new_tokens, temperature))

    def chat(self, images: Any = ()) -> Chat:
        """Return a new conversation that begins with these pictures."""
        return Chat(self, images)

    def _stream(self, conversation: Conversation, sampling: Sampling) -> Iterator[str]:
        pieces = self.engine.respond([conversation], sampling)
        return _stripped(piece.text for piece in pieces)


class Chat:
    """A conversation; made by `MultimodalAssistant.chat`.

    Attributes:
        messages: all turns so far. A turn whose answer failed or was cut off is not kept.
    """

    def __init__(self, assistant: MultimodalAssistant, images: Any = ()) -> None:
        self.assistant = assistant
        self.messages: list[Message] = []
        self._waiting = _as_list(images)

    def say(self, text: str, images: Any = ()) -> str:
        """Say something, perhaps with more pictures, and return the answer.

        Raises: as `MultimodalAssistant.query`.
        """
        return "".join(self.stream(text, images))

    def stream(self, text: str, images: Any = ()) -> Iterator[str]:
        """Say something and yield the answer in pieces as it is made.

        Raises: as `MultimodalAssistant.query`.
        """
        turn = _user_turn([*self._waiting, *_as_list(images)], text)
        pieces = self.assistant._stream((*self.messages, turn), Sampling())
        answer = ""
        for piece in pieces:
            answer += piece
            yield piece
        self.messages += [turn, Message("assistant", (TextPart(answer),))]
        self._waiting = []


def _user_turn(images: Any, text: str) -> Message:
    """The pictures first, then the words: how LLaVA models are trained."""
    return Message("user", (*map(ImagePart, _as_list(images)), TextPart(text)))


def _as_list(images: Any) -> list[Any]:
    return list(images) if isinstance(images, list | tuple) else [images]


def _stripped(texts: Iterator[str]) -> Iterator[str]:
    """Yield the pieces of a text without the white space at its ends."""
    spaces, has_begun = "", False
    for text in texts:
        if not has_begun:
            text = text.lstrip()
            has_begun = bool(text)
        core = text.rstrip()
        if core:
            yield spaces + core
            spaces = text[len(core) :]
        else:
            spaces += text
