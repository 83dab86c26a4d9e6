"""What clients are sent: the replies of the OpenAI API."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from pydantic import BaseModel

from lapilli import messages

Finish = Literal["stop", "length", "tool_calls"]


class ErrorText(BaseModel):
    """Why a request was not answered; `code` is stable."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorReply(BaseModel):
    """What every request gets that is not answered."""

    error: ErrorText


class CachedTokens(BaseModel):
    """Tokens of the prompt that were not read again."""

    cached_tokens: int


class Usage(BaseModel):
    """What the answers took."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class LikelyToken(BaseModel):
    """A token and how likely it was."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(LikelyToken):
    """A token of the answer, and the likeliest in its place."""

    top_logprobs: list[LikelyToken]


class Logprobs(BaseModel):
    """The tokens of an answer, its end included."""

    content: list[TokenLogprob]
    refusal: None = None


class CalledFunction(BaseModel):
    """Which function, and its arguments as JSON."""

    name: str
    arguments: str


class ToolCall(BaseModel):
    """A call that the model wants made."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class ToolCallDelta(ToolCall):
    """A call in a stream; it comes whole."""

    index: int


class ChatMessage(BaseModel):
    """An answer."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    tool_calls: list[ToolCall] | None = None


class ChatChoice(BaseModel):
    """One of the answers."""

    index: int
    message: ChatMessage
    logprobs: Logprobs | None
    finish_reason: Finish


class ChatReply(BaseModel):
    """The answers to a conversation."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class Delta(BaseModel):
    """What is new in an answer."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChatChunkChoice(BaseModel):
    """What is new in one of the answers."""

    index: int
    delta: Delta
    logprobs: Logprobs | None = None
    finish_reason: Finish | None = None


class ChatChunk(BaseModel):
    """An event of a stream."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class TextLogprobs(BaseModel):
    """The tokens of a continuation, in the older form."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextChoice(BaseModel):
    """One of the continuations, or what is new in it."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class TextReply(BaseModel):
    """Continuations of running text, whole or as an event of a stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage | None = None


class Model(BaseModel):
    """A model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["lapilli"] = "lapilli"


class Models(BaseModel):
    """The models that are served."""

    object: Literal["list"] = "list"
    data: list[Model]


class EmbeddingReply(BaseModel):
    """Numbers that stand for meanings; no model that is served makes them."""

    object: Literal["list"] = "list"


class Health(BaseModel):
    """The server answers."""

    status: Literal["ok"] = "ok"


def usage_of(usages: Iterable[messages.Usage], prompts: int = 1) -> Usage:
    """Return what several answers took; those to the same prompt share it.

    Args:
        usages: of the answers, those to one prompt next to each other.
        prompts: how many prompts there were.
    """
    every = list(usages)
    step = max(1, len(every) // prompts)
    prompt = sum(usage.prompt for usage in every[::step])
    answer = sum(usage.answer for usage in every)
    cached = sum(usage.reused for usage in every[::step])
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=answer,
        total_tokens=prompt + answer,
        prompt_tokens_details=CachedTokens(cached_tokens=cached),
    )


def chat_logprobs(tokens: Sequence[messages.TokenLogprob]) -> Logprobs:
    """Return how likely tokens were, in the form of chats."""
    return Logprobs(
        content=[
            TokenLogprob(
                token=token.token,
                logprob=token.logprob,
                bytes=_bytes(token.token),
                top_logprobs=[
                    LikelyToken(token=word, logprob=logprob, bytes=_bytes(word))
                    for word, logprob in token.top
                ],
            )
            for token in tokens
        ]
    )


def text_logprobs(tokens: Sequence[messages.TokenLogprob], start: int) -> TextLogprobs:
    """Return how likely tokens were, in the older form.

    Args:
        start: characters of the answer before them.
    """
    offsets = []
    for token in tokens:
        offsets.append(start)
        start += len(token.token)
    return TextLogprobs(
        tokens=[token.token for token in tokens],
        token_logprobs=[token.logprob for token in tokens],
        top_logprobs=[dict(token.top) for token in tokens],
        text_offset=offsets,
    )


def _bytes(token: str) -> list[int] | None:
    """The bytes of a token; None for a part of a character, whose bytes its text does not show."""
    return None if "\ufffd" in token else list(token.encode())
