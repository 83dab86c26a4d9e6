"""An engine for servers: moved on by a thread of its own, asked from an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator

from lapilli.engine.answer import Told
from lapilli.engine.engine import Engine
from lapilli.errors import EngineError, LapilliError
from lapilli.messages import Piece, Request


class AsyncEngine:
    """Moves an engine on in a thread as long as there is work, and tells coroutines.

    Use it as an asynchronous context manager, or `close` it: then what has begun is finished.

    Args:
        engine: whom nobody else moves on.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._work = threading.Condition()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="lapilli-engine", daemon=True)
        self._thread.start()

    async def __aenter__(self) -> AsyncEngine:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def stream(self, request: Request) -> AsyncGenerator[Piece, None]:
        """Yield the pieces of a request's answers as they are made.

        A reader that stops, or is cancelled, cancels the answers.

        Raises:
            LapilliError: as `Engine.submit`; or an answer failed.
            EngineError: the engine is closing.
        """
        loop, told = asyncio.get_running_loop(), asyncio.Queue[Told]()

        def tell(piece: Told) -> None:
            try:
                loop.call_soon_threadsafe(told.put_nowait, piece)
            except RuntimeError:  # the loop has ended, and its readers with it
                for answer in answers:
                    answer.is_cancelled = True

        if self._is_closing:
            raise EngineError("the engine is closing; ask another")
        answers = await asyncio.to_thread(self.engine.prepare, request, tell)
        self.engine.begin(answers)
        self._wake()
        num_unfinished = len(answers)
        try:
            while num_unfinished:
                piece = await told.get()
                if isinstance(piece, LapilliError):
                    raise piece
                num_unfinished -= piece.finish_reason is not None
                yield piece
        finally:
            for answer in answers:
                answer.is_cancelled = True
            self._wake()

    async def close(self) -> None:
        """Take nothing more, finish what has begun, and end the thread."""
        self._is_closing = True
        self._wake()
        await asyncio.to_thread(self._thread.join)

    def _wake(self) -> None:
        with self._work:
            self._work.notify()

    def _run(self) -> None:
        while True:
            with self._work:
                while not self.engine.has_work:
                    if self._is_closing:
                        return
                    self._work.wait()
            try:
                self.engine.step()
            except Exception as error:  # without this thread nobody would ever be answered again
                self.engine.end_all(error)
