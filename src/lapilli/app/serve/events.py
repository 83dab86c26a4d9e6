"""Server-sent events: how answers are streamed."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from json import dumps

from pydantic import BaseModel
from starlette.responses import StreamingResponse

from lapilli.app.serve.refusals import Refusal

_DONE = b"data: [DONE]\n\n"
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
"""The second tells nginx not to hold events back."""


async def stream_response(replies: AsyncGenerator[BaseModel, None]) -> StreamingResponse:
    """Return a response that sends replies as they come.

    The first is waited for, so that a request that fails at once gets its own status.

    Raises:
        Refusal: there is no first reply.
    """
    first = await anext(replies)
    return StreamingResponse(
        _events(first, replies), media_type="text/event-stream", headers=_HEADERS
    )


async def _events(
    first: BaseModel, replies: AsyncGenerator[BaseModel, None]
) -> AsyncIterator[bytes]:
    """What is sent; a refusal comes as the last event, for the status is told already."""
    async with aclosing(replies):
        yield _event(first.model_dump_json())
        try:
            async for reply in replies:
                yield _event(reply.model_dump_json())
        except Refusal as refusal:
            yield _event(dumps(refusal.to_json()))
            return
        yield _DONE


def _event(text: str) -> bytes:
    return f"data: {text}\n\n".encode()
