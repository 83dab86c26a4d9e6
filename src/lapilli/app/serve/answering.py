"""Asks the engine, and tells errors and delays as refusals."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from lapilli.app.serve.limits import Limits
from lapilli.app.serve.metrics import Metrics
from lapilli.app.serve.refusals import Refusal, refusal_of
from lapilli.engine.asynchronous import AsyncEngine
from lapilli.errors import LapilliError
from lapilli.messages import Piece, Request


@dataclass(frozen=True, slots=True)
class Answering:
    """Asks the engine for answers.

    Attributes:
        engine: moved on by a thread of its own.
    """

    engine: AsyncEngine
    limits: Limits
    metrics: Metrics

    async def pieces(self, request: Request) -> AsyncGenerator[Piece, None]:
        """Yield the pieces of answers; to close it cancels them.

        Raises:
            Refusal: the request or an answer failed, or took too long.
        """
        begun, has_token = time.monotonic(), False
        deadline = asyncio.get_running_loop().time() + self.limits.answer_seconds
        stream = self.engine.stream(request)
        try:
            while True:
                async with asyncio.timeout_at(deadline):
                    piece = await anext(stream, None)
                if piece is None:
                    return
                if not has_token:
                    has_token = True
                    self.metrics.first_token_seconds.observe(time.monotonic() - begun)
                yield piece
        except TimeoutError as error:
            raise Refusal("timeout") from error
        except LapilliError as error:
            raise refusal_of(error) from error
        finally:
            await stream.aclose()
