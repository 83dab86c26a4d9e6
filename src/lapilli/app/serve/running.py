"""Runs the server until it is told to stop."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from lapilli.app.serve.application import Settings, make_app
from lapilli.app.serve.clients import impatient
from lapilli.app.serve.limits import Limits
from lapilli.app.serve.remote import RemotePictures
from lapilli.checkpoints.loading import EMBEDDED, load
from lapilli.engine.engine import Engine
from lapilli.engine.settings import EngineSettings
from lapilli.errors import ConfigError

_MAX_HEAD_BYTES = 64 * 1024


@dataclass(frozen=True)
class Service:
    """What is served, where, and to whom.

    Attributes:
        model: as `lapilli.checkpoints.loading.load` takes it.
        name: under which clients ask for the model; None for a name that follows from `model`.
        port: 0 for one that is free.
        keys: one of which clients must give.
        image_hosts: from which pictures are fetched.
        logs_requests: a line is logged for each request.
    """

    model: str | None = None
    device: str = "auto"
    name: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    keys: Sequence[str] = ()
    image_hosts: Sequence[str] = ()
    logs_requests: bool = False
    max_batch: int = 16
    limits: Limits = field(default_factory=Limits)


def serve(service: Service, *, announce: Callable[[str], None]) -> None:
    """Serve a model until SIGTERM or SIGINT; what has begun is finished.

    Args:
        announce: told the address once connections are taken.

    Raises:
        ConfigError: the address cannot be had.
        CheckpointError: there is no such model, or it is damaged.
    """
    listener = _listen(service.host, service.port)
    with listener:
        model, processor = load(service.model, device=service.device)
        limits = service.limits
        engine = Engine(
            model,
            processor,
            settings=EngineSettings(max_batch=service.max_batch, max_waiting=limits.waiting),
        )
        remote = None
        if service.image_hosts:
            remote = RemotePictures(service.image_hosts, seconds=limits.fetch_seconds)
        settings = Settings(
            service.name or public_name(service.model),
            limits,
            service.keys,
            remote,
            service.logs_requests,
        )
        if service.logs_requests:
            _log_to_stderr()
        server = make_server(make_app(engine, settings), limits)
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        announce(f"{settings.name} at http://{shown}:{port}/v1")
        # uvicorn raises the signal again when it has finished; that is the end that was asked for.
        signal.signal(signal.SIGTERM, lambda *_: None)
        server.run(sockets=[listener])


def make_server(app: ASGIApp, limits: Limits) -> uvicorn.Server:
    """Return a server that ends slow connections, and finishes what has begun when it stops."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=impatient(limits.client_seconds),
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            h11_max_incomplete_event_size=_MAX_HEAD_BYTES,
            timeout_keep_alive=max(1, int(limits.client_seconds)),
            timeout_graceful_shutdown=int(limits.answer_seconds + limits.client_seconds),
        )
    )


def public_name(model: str | None) -> str:
    """Return a model's name without the path of its folder."""
    if model is None:
        return EMBEDDED
    path = Path(model).expanduser()
    return path.resolve().name if path.is_dir() else model


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else "no such address"
        raise ConfigError(f"{host}:{port}: {reason}; give another --host or --port") from error


def _log_to_stderr() -> None:
    logger = logging.getLogger("lapilli.serve")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
