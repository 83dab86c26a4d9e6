"""Answers to conversations, in the form of `/v1/chat/completions`."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

from lapilli.app.serve.replies import (
    CalledFunction,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatMessage,
    ChatReply,
    Delta,
    Finish,
    ToolCall,
    ToolCallDelta,
    Usage,
    chat_logprobs,
    usage_of,
)
from lapilli.app.serve.tools import Call, Listener, Tools
from lapilli.messages import Piece, TokenLogprob
from lapilli.messages import Usage as Taken

Pieces = AsyncGenerator[Piece, None]


@dataclass
class _Answer:
    """One answer on its way; the white space before its first word is dropped."""

    listener: Listener
    has_words: bool = False
    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    call: Call | None = None
    finish: Finish | None = None
    taken: Taken | None = None

    def add(self, piece: Piece) -> str:
        """Return what can be told now that a piece has come."""
        text = piece.text if self.has_words else piece.text.lstrip()
        self.has_words = self.has_words or bool(text)
        text = self.listener.add(text)
        if piece.finish_reason is not None:
            rest, self.call = self.listener.finish()
            text += rest
            self.taken = piece.usage
            self.finish = "tool_calls" if self.call else _finish(piece)
        self.text += text
        self.logprobs += piece.logprobs
        return text


@dataclass
class Chat:
    """The answers to one conversation.

    Args:
        model: the name under which it is served.
        tools: what the answers may call.
        has_logprobs: how likely tokens were is told.
        includes_usage: a stream ends with what the answers took.
    """

    model: str
    tools: Tools
    num_answers: int
    has_logprobs: bool
    includes_usage: bool

    def __post_init__(self) -> None:
        self._id = f"chatcmpl-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._answers = [_Answer(Listener(self.tools)) for _ in range(self.num_answers)]

    async def whole(self, pieces: Pieces) -> ChatReply:
        """Return all answers once they are made."""
        async with aclosing(pieces):
            async for piece in pieces:
                self._answers[piece.index].add(piece)
        choices = []
        for index, answer in enumerate(self._answers):
            call = answer.call
            message = ChatMessage(
                content=None if call and not answer.text else answer.text,
                tool_calls=[ToolCall(id=call.id, function=_function(call))] if call else None,
            )
            logprobs = chat_logprobs(answer.logprobs) if self.has_logprobs else None
            assert answer.finish is not None
            choices.append(
                ChatChoice(
                    index=index, message=message, logprobs=logprobs, finish_reason=answer.finish
                )
            )
        return ChatReply(
            id=self._id,
            created=self._created,
            model=self.model,
            choices=choices,
            usage=self._usage(),
        )

    async def chunks(self, pieces: Pieces) -> AsyncGenerator[ChatChunk, None]:
        """Yield what is new in the answers as they are made."""
        has_role = set[int]()
        async with aclosing(pieces):
            async for piece in pieces:
                answer = self._answers[piece.index]
                text = answer.add(piece)
                delta = Delta(content=text or None)
                if piece.index not in has_role:
                    has_role.add(piece.index)
                    delta.role, delta.content = "assistant", text
                if answer.call is not None:
                    delta.tool_calls = [
                        ToolCallDelta(index=0, id=answer.call.id, function=_function(answer.call))
                    ]
                choice = ChatChunkChoice(
                    index=piece.index, delta=delta, finish_reason=answer.finish
                )
                if self.has_logprobs:
                    choice.logprobs = chat_logprobs(piece.logprobs)
                yield self._chunk([choice])
        if self.includes_usage:
            yield self._chunk([], self._usage())

    def _chunk(self, choices: list[ChatChunkChoice], usage: Usage | None = None) -> ChatChunk:
        return ChatChunk(
            id=self._id, created=self._created, model=self.model, choices=choices, usage=usage
        )

    def _usage(self) -> Usage:
        return usage_of(answer.taken for answer in self._answers if answer.taken)


def _function(call: Call) -> CalledFunction:
    return CalledFunction(name=call.name, arguments=call.arguments)


def _finish(piece: Piece) -> Finish:
    return "length" if piece.finish_reason == "length" else "stop"
