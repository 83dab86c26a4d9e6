"""Continuations of running text, in the form of `/v1/completions`."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from lapilli.app.serve.answering import Answering
from lapilli.app.serve.replies import TextChoice, TextReply, text_logprobs, usage_of
from lapilli.messages import Piece, Request, TokenLogprob, Usage


@dataclass
class Continuations:
    """The continuations of one or more texts, one text after the other.

    Args:
        model: the name under which it is served.
        includes_usage: a stream ends with what the continuations took.
    """

    model: str
    requests: Sequence[Request]
    includes_usage: bool

    def __post_init__(self) -> None:
        self._id = f"cmpl-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._has_logprobs = self.requests[0].sampling.num_logprobs is not None
        self._usages: list[Usage] = []

    async def whole(self, answering: Answering) -> TextReply:
        """Return all continuations once they are made."""
        choices: list[TextChoice] = []
        for request in self.requests:
            texts, reasons = [""] * request.num_answers, [""] * request.num_answers
            tokens: list[list[TokenLogprob]] = [[] for _ in texts]
            async with aclosing(self._pieces(answering, request)) as pieces:
                async for piece in pieces:
                    texts[piece.index] += piece.text
                    tokens[piece.index] += piece.logprobs
                    reasons[piece.index] = piece.finish_reason or ""
            choices += [
                TextChoice(
                    index=len(choices) + index,
                    text=text,
                    logprobs=text_logprobs(told, 0) if self._has_logprobs else None,
                    finish_reason="length" if reason == "length" else "stop",
                )
                for index, (text, reason, told) in enumerate(
                    zip(texts, reasons, tokens, strict=True)
                )
            ]
        return self._reply(choices, is_last=True)

    async def chunks(self, answering: Answering) -> AsyncGenerator[TextReply, None]:
        """Yield what is new in the continuations as they are made."""
        first = 0
        for request in self.requests:
            starts = [0] * request.num_answers
            async with aclosing(self._pieces(answering, request)) as pieces:
                async for piece in pieces:
                    choice = TextChoice(
                        index=first + piece.index,
                        text=piece.text,
                        logprobs=None,
                        finish_reason=None,
                    )
                    if piece.finish_reason is not None:
                        choice.finish_reason = (
                            "length" if piece.finish_reason == "length" else "stop"
                        )
                    if self._has_logprobs:
                        choice.logprobs = text_logprobs(piece.logprobs, starts[piece.index])
                        starts[piece.index] += sum(len(t.token) for t in piece.logprobs)
                    yield self._reply([choice])
            first += request.num_answers
        if self.includes_usage:
            yield self._reply([], is_last=True)

    async def _pieces(self, answering: Answering, request: Request) -> AsyncGenerator[Piece, None]:
        async with aclosing(answering.pieces(request)) as pieces:
            async for piece in pieces:
                if piece.usage is not None:
                    self._usages.append(piece.usage)
                yield piece

    def _reply(self, choices: list[TextChoice], *, is_last: bool = False) -> TextReply:
        return TextReply(
            id=self._id,
            created=self._created,
            model=self.model,
            choices=choices,
            usage=usage_of(self._usages, len(self.requests)) if is_last else None,
        )
