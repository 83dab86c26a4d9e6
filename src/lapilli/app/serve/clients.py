"""Connections that do not wait for ever: for what a client begins to send, or does not read."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol


def impatient(seconds: float) -> type[H11Protocol]:
    """Return a protocol that ends connections on which nothing goes on for so long."""
    return type("Impatient", (_Impatient,), {"seconds": seconds})


class _Impatient(H11Protocol):
    """uvicorn's own limits the time between two requests alone."""

    seconds: ClassVar[float]
    _sending: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch_sending()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_sending()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_sending()
        self._stop_reading()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reading = self._reading or self.loop.call_later(self.seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_reading()

    @property
    def _waits_for_head(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _watch_sending(self) -> None:
        """Time how long the head of a request takes; its body is timed elsewhere."""
        if not self._waits_for_head:
            self._stop_sending()
        elif self._sending is None:
            self._sending = self.loop.call_later(self.seconds, self._give_up)

    def _give_up(self) -> None:
        self._sending = None
        if self._waits_for_head:
            self.transport.abort()

    def _stop_sending(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None

    def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None
