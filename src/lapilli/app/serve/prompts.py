"""From what clients send to what the engine is asked."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from lapilli.app.serve import requests
from lapilli.app.serve.limits import Limits, Share
from lapilli.app.serve.pictures import Address, open_pictures
from lapilli.app.serve.refusals import Refusal
from lapilli.app.serve.remote import RemotePictures
from lapilli.app.serve.tools import Tools, as_said, as_told
from lapilli.messages import (
    Conversation,
    Format,
    ImagePart,
    Message,
    Part,
    Request,
    Role,
    Sampling,
    TextPart,
)

CHAT_TOKENS = 1024
"""Of an answer, where a request does not say."""
TEXT_TOKENS = 16

Turn = tuple[Role, list[str | Address]]


@dataclass(frozen=True, slots=True)
class Prompts:
    """Turns requests into what the engine is asked.

    Args:
        remote: fetches pictures from other hosts; None where that is off.
    """

    limits: Limits
    remote: RemotePictures | None = None

    async def of_chat(self, asked: requests.ChatRequest, tools: Tools, share: Share) -> Request:
        """Return a conversation for the engine, its pictures opened.

        Raises:
            Refusal: a parameter makes no sense, a limit is passed, or a picture cannot be had.
        """
        if (asked.max_tokens, asked.max_completion_tokens).count(None) == 0:
            raise Refusal("invalid_value", "max_completion_tokens")
        if asked.top_logprobs is not None and not asked.logprobs:
            raise Refusal("invalid_value", "top_logprobs")
        form = _form(asked)
        if form is not None and tools.functions:
            raise Refusal("invalid_value", "response_format")
        sampling = self._sampling(
            asked,
            asked.max_completion_tokens or asked.max_tokens or CHAT_TOKENS,
            (asked.top_logprobs or 0) if asked.logprobs else None,
            tools.form or form,
        )
        turns = _turns(asked.messages, tools.description)
        self._check_length([part for _, parts in turns for part in parts if isinstance(part, str)])
        addresses = [part for _, parts in turns for part in parts if isinstance(part, Address)]
        pictures = iter(await open_pictures(addresses, self.limits, self.remote, share))

        def part_of(part: str | Address) -> Part:
            return TextPart(part) if isinstance(part, str) else ImagePart(next(pictures))

        conversation: Conversation = tuple(
            Message(role, tuple(part_of(part) for part in parts)) for role, parts in turns
        )
        return Request(conversation, sampling, self._num_answers(asked))

    def of_text(self, asked: requests.CompletionRequest) -> list[Request]:
        """Return running texts for the engine.

        Raises:
            Refusal: a limit is passed.
        """
        texts = [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt
        self._check_length(texts)
        count = self._num_answers(asked)
        if count * len(texts) > self.limits.answers:
            raise Refusal("invalid_value", "prompt")
        sampling = self._sampling(asked, asked.max_tokens or TEXT_TOKENS, asked.logprobs, None)
        return [Request((), sampling, count, text) for text in texts]

    def _num_answers(self, asked: requests.Asking) -> int:
        count = asked.n or 1
        if count > self.limits.answers:
            raise Refusal("invalid_value", "n")
        return count

    def _check_length(self, texts: Sequence[str]) -> None:
        """Refuse what is too long before time is spent on its words."""
        if sum(map(len, texts)) > self.limits.characters:
            raise Refusal("context_length_exceeded")

    def _sampling(
        self,
        asked: requests.Asking,
        max_new_tokens: int,
        num_logprobs: int | None,
        form: Format | None,
    ) -> Sampling:
        stop = asked.stop or ()
        return Sampling(
            max_new_tokens=max_new_tokens,
            temperature=asked.temperature or 0.0,
            top_p=1.0 if asked.top_p is None else asked.top_p,
            seed=secrets.randbits(63) if asked.seed is None else asked.seed,
            top_k=asked.top_k or 0,
            min_p=asked.min_p or 0.0,
            repetition_penalty=asked.repetition_penalty or 1.0,
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            num_logprobs=num_logprobs,
            form=form,
        )


def _form(asked: requests.ChatRequest) -> Format | None:
    match asked.response_format:
        case requests.ObjectFormat():
            return Format("json_schema", '{"type": "object"}')
        case requests.SchemaFormat(json_schema=schema):
            return Format("json_schema", json.dumps(schema.schema_))
        case _:
            return None


def _turns(messages: Sequence[requests.Message], description: str) -> list[Turn]:
    """Who says what, in the three roles that models know.

    Args:
        description: of the functions that may be called; it goes to the system's words.

    Raises:
        Refusal: a user says nothing, or a result belongs to no call.
    """
    turns: list[Turn] = [("system", [description])] if description else []
    names: dict[str, str] = {}
    for index, message in enumerate(messages):
        where = f"messages.{index}"
        match message:
            case requests.SystemMessage():
                _say(turns, "system", _parts(message.content, where))
            case requests.UserMessage():
                parts = _parts(message.content, where)
                if not any(isinstance(part, Address) or part.strip() for part in parts):
                    raise Refusal("invalid_value", f"{where}.content")
                _say(turns, "user", parts)
            case requests.AssistantMessage():
                calls = message.tool_calls or []
                names |= {call.id: call.function.name for call in calls}
                said = [as_said(call.function.name, call.function.arguments) for call in calls]
                turns.append(("assistant", _parts(message.content or "", where) + list(said)))
            case requests.ToolMessage():
                if message.tool_call_id not in names:
                    raise Refusal("invalid_value", f"{where}.tool_call_id")
                result = "".join(map(str, _parts(message.content, where)))
                _say(turns, "user", [as_told(names[message.tool_call_id], result)])
    return turns


def _say(turns: list[Turn], role: Role, parts: list[str | Address]) -> None:
    """Add to a conversation; who has just spoken goes on, for many templates let each speak in
    turn."""
    if turns and turns[-1][0] == role:
        turns[-1][1].extend(["\n", *parts])
    else:
        turns.append((role, parts))


def _parts(
    content: str | Sequence[requests.TextContent | requests.ImageContent], where: str
) -> list[str | Address]:
    if isinstance(content, str):
        return [content] if content else []
    return [
        part.text
        if isinstance(part, requests.TextContent)
        else Address(part.image_url.url, f"{where}.content.{index}.image_url.url")
        for index, part in enumerate(content)
    ]
