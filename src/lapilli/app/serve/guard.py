"""Stands before everything else: who may ask, how much, how long; and notices who has left."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import json
import logging
import time
import traceback
from collections.abc import Sequence
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lapilli.app.serve.limits import Budget, Limits, Share
from lapilli.app.serve.metrics import Metrics
from lapilli.app.serve.refusals import Refusal

OPEN_ROUTES = ("/health",)
"""Answered without a key."""
ROUTES = (
    "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/models", "/health",
    "/metrics", "/openapi.json",
)  # fmt: skip
"""Named in figures and logs; all others are "other", for clients choose them freely."""

_HELD_PER_BYTE = 3
"""A body is held as bytes, as what is read from them, and as decoded pictures."""

logger = logging.getLogger("lapilli.serve")


def is_loopback(host: str) -> bool:
    """Whether a name stands for this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """Lets requests pass to an application, within limits.

    Args:
        keys: one of them must be given; without any, only requests to this machine under its own
            name are answered, so that no page in a browser can ask by a name of its own.
        max_requests: that are answered at once, waiting ones included.
        logs_requests: a line is logged for each.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        limits: Limits,
        budget: Budget,
        metrics: Metrics,
        keys: Sequence[str],
        max_requests: int,
        logs_requests: bool,
    ) -> None:
        self.app = app
        self._limits = limits
        self._budget = budget
        self._metrics = metrics
        self._keys = [_digest(key.encode()) for key in keys]
        self._max_requests = max_requests
        self._num_requests = 0
        self._logs_requests = logs_requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, exchange = time.monotonic(), _Exchange(scope, receive, send)
        is_work = scope["method"] == "POST"
        try:
            self._check(scope, is_work)
            self._num_requests += is_work
            try:
                with Share(self._budget) as share:
                    scope["state"] = {**scope.get("state", {}), "share": share}
                    await exchange.run(self.app, await self._body(exchange, share))
            finally:
                self._num_requests -= is_work
        except Refusal as refusal:
            scope["state"] = {"code": refusal.code}
            await exchange.refuse(refusal)
        except _Gone:
            self._metrics.disconnects.inc()
        except Exception as error:
            _log_failure(error)
            await exchange.refuse(Refusal("internal_error"))
        finally:
            self._note(exchange, time.monotonic() - begun)

    def _check(self, scope: Scope, is_work: bool) -> None:
        headers = dict(scope["headers"])
        if self._keys:
            if scope["path"] not in OPEN_ROUTES and not self._knows(headers):
                raise Refusal("invalid_api_key")
        elif not is_loopback(_host(headers.get(b"host", b"").decode("latin-1"))):
            raise Refusal("wrong_host")
        if is_work and self._num_requests >= self._max_requests:
            raise Refusal("queue_full")
        size = headers.get(b"content-length", b"0")
        if size.isdigit() and int(size[:20]) > self._limits.body_bytes:
            raise Refusal("body_too_large")

    def _knows(self, headers: dict[bytes, bytes]) -> bool:
        scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
        given = _digest(key.strip())
        # All are compared, each in the same time, so that time tells nothing.
        found = [hmac.compare_digest(given, known) for known in self._keys]
        return any(found) and scheme.lower() == b"bearer"

    async def _body(self, exchange: _Exchange, share: Share) -> bytes:
        chunks, size = [], 0
        try:
            async with asyncio.timeout(self._limits.client_seconds):
                async for chunk in exchange.body():
                    size += len(chunk)
                    if size > self._limits.body_bytes:
                        raise Refusal("body_too_large")
                    share.take(len(chunk) * _HELD_PER_BYTE)
                    chunks.append(chunk)
        except TimeoutError as error:
            raise Refusal("slow_client", headers={"Connection": "close"}) from error
        return b"".join(chunks)

    def _note(self, exchange: _Exchange, seconds: float) -> None:
        scope = exchange.scope
        path = "/v1/models" if scope["path"].startswith("/v1/models/") else scope["path"]
        route = path if path in ROUTES else "other"
        code = scope.get("state", {}).get("code")
        self._metrics.requests.labels(route, str(exchange.status or "none")).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        if code is not None:
            self._metrics.refusals.labels(code).inc()
        if self._logs_requests:
            line = {
                "route": route,
                "status": exchange.status,
                "code": code,
                "seconds": round(seconds, 3),
                "body_bytes": exchange.num_received,
            }
            logger.info(json.dumps(line))


class _Gone(Exception):  # noqa: N818 - no error: clients may leave
    """The client has left."""


class _Exchange:
    """One request and its response."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.status: int | None = None
        self.num_received = 0
        self._receive = receive
        self._send = send
        self._is_over = False

    async def body(self) -> Any:
        """Yield what the client sends."""
        has_more = True
        while has_more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise _Gone
            has_more = message.get("more_body", False)
            chunk = message.get("body", b"")
            self.num_received += len(chunk)
            yield chunk

    async def run(self, app: ASGIApp, body: bytes) -> None:
        """Let an application answer, and stop it when the client leaves.

        Raises:
            _Gone: it has left.
        """
        unread, gone = [body], asyncio.Event()

        async def replay() -> Message:
            if unread:
                return {"type": "http.request", "body": unread.pop(), "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        del body  # or it would be held as long as the answer takes
        work = asyncio.ensure_future(app(self.scope, replay, self._send_on))
        watch = asyncio.ensure_future(self._until_gone())
        try:
            await asyncio.wait((work, watch), return_when=asyncio.FIRST_COMPLETED)
            if not work.done() and not self._is_over:
                gone.set()
                work.cancel()
                await asyncio.wait((work,))
                raise _Gone
            await work
        finally:
            watch.cancel()
            work.cancel()
            await asyncio.gather(work, watch, return_exceptions=True)

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def _send_on(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif not message.get("more_body", False):
            self._is_over = True
        await self._send(message)

    async def refuse(self, refusal: Refusal) -> None:
        """Say why there is no answer, unless one has begun."""
        if self.status is None:
            await refusal.response()(self.scope, self._receive, self._send_on)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _host(header: str) -> str:
    """The name in a Host header, without its port."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0].lower()


def _log_failure(error: Exception) -> None:
    """Log where the server failed; an error's own text may hold words of the request."""
    places = "".join(traceback.format_tb(error.__traceback__))
    logger.error("%s\n%s", type(error).__name__, places)
