"""The routes of the server."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from lapilli import __version__
from lapilli.app.serve.answering import Answering
from lapilli.app.serve.chat import Chat
from lapilli.app.serve.continuing import Continuations
from lapilli.app.serve.events import stream_response
from lapilli.app.serve.guard import Guard
from lapilli.app.serve.limits import Budget, Limits
from lapilli.app.serve.metrics import Metrics
from lapilli.app.serve.prompts import Prompts
from lapilli.app.serve.refusals import Refusal, refusal_of_fault
from lapilli.app.serve.remote import RemotePictures
from lapilli.app.serve.replies import (
    ChatReply,
    EmbeddingReply,
    ErrorReply,
    Health,
    Model,
    Models,
    TextReply,
)
from lapilli.app.serve.requests import (
    Asking,
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
)
from lapilli.app.serve.tools import Tools
from lapilli.engine.asynchronous import AsyncEngine
from lapilli.engine.engine import Engine

_REFUSED: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorReply, "description": "Refused; `code` says why."},
    "5XX": {"model": ErrorReply, "description": "Failed; `code` says why."},
}
_STREAMED: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
    **_REFUSED,
}
_TEXT: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
    **_REFUSED,
}


@dataclass(frozen=True)
class Settings:
    """How a model is served.

    Attributes:
        name: under which clients ask for it.
        keys: one of which clients must give; without any, this machine alone is answered.
        remote: fetches pictures from other hosts; None where that is off.
        logs_requests: a line is logged for each request.
    """

    name: str
    limits: Limits = field(default_factory=Limits)
    keys: Sequence[str] = ()
    remote: RemotePictures | None = None
    logs_requests: bool = False


def make_app(engine: Engine, settings: Settings) -> FastAPI:
    """Return an application that serves a model; the engine is moved on by it alone."""
    limits, budget = settings.limits, Budget(settings.limits.held_bytes)
    metrics = Metrics(engine.state, budget)
    prompts = Prompts(limits, settings.remote)
    model = Model(id=settings.name, created=int(time.time()))
    asynchronous = AsyncEngine(engine)
    answering = Answering(asynchronous, limits, metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with asynchronous:
            yield

    # The pages that FastAPI offers to read the description load scripts from elsewhere.
    app = FastAPI(
        title="Lapilli", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None
    )
    app.add_middleware(
        Guard,
        limits=limits,
        budget=budget,
        metrics=metrics,
        keys=settings.keys,
        max_requests=engine.settings.max_batch + limits.waiting,
        logs_requests=settings.logs_requests,
    )
    _add_refusals(app)

    def check_model(name: str) -> None:
        if name != settings.name:
            raise Refusal("model_not_found", "model")

    @app.post("/v1/chat/completions", response_model=ChatReply, responses=_STREAMED)
    async def chat_completions(asked: ChatRequest, request: Request) -> Any:
        """Answer a conversation, pictures anywhere in it."""
        check_model(asked.model)
        _check_stream(asked)
        tools = Tools.of(asked)
        prompt = await prompts.of_chat(asked, tools, request.state.share)
        chat = Chat(
            settings.name, tools, prompt.num_answers, bool(asked.logprobs), _wants_usage(asked)
        )
        pieces = answering.pieces(prompt)
        if asked.stream:
            return await stream_response(chat.chunks(pieces))
        return _json(await chat.whole(pieces))

    @app.post("/v1/completions", response_model=TextReply, responses=_STREAMED)
    async def completions(asked: CompletionRequest) -> Any:
        """Continue running text as it is, without the model's template."""
        check_model(asked.model)
        _check_stream(asked)
        texts = Continuations(settings.name, prompts.of_text(asked), _wants_usage(asked))
        if asked.stream:
            return await stream_response(texts.chunks(answering))
        return _json(await texts.whole(answering))

    @app.post("/v1/embeddings", response_model=EmbeddingReply, responses=_REFUSED)
    async def embeddings(asked: EmbeddingRequest) -> Any:
        """Refuse: features of pictures are kept for the language model, none that compare with
        words."""
        check_model(asked.model)
        raise Refusal("embeddings_unsupported", "model")

    @app.get("/v1/models", responses=_REFUSED)
    async def models() -> Models:
        """List the model that is served."""
        return Models(data=[model])

    @app.get("/v1/models/{name:path}", responses=_REFUSED)
    async def one_model(name: str) -> Model:
        """Describe the model that is served."""
        check_model(name)
        return model

    @app.get("/health", responses=_REFUSED)
    async def health() -> Health:
        """Say that the server answers."""
        return Health()

    @app.get("/metrics", response_class=Response, responses=_TEXT)
    async def figures() -> Response:
        """Return figures for Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return app


def _wants_usage(asked: Asking) -> bool:
    return bool(asked.stream_options and asked.stream_options.include_usage)


def _check_stream(asked: Asking) -> None:
    if asked.stream_options is not None and not asked.stream:
        raise Refusal("invalid_value", "stream_options")


def _json(reply: ChatReply | TextReply) -> Response:
    return Response(reply.model_dump_json(), media_type="application/json")


def _add_refusals(app: FastAPI) -> None:
    """Tell every error in the one form that there is."""

    async def refuse(request: Request, error: Exception) -> Response:
        match error:
            case Refusal():
                refusal = error
            case RequestValidationError():
                refusal = refusal_of_fault(error.errors())
            case HTTPException(status_code=404):
                refusal = Refusal("not_found")
            case HTTPException(status_code=405):
                refusal = Refusal("method_not_allowed", headers=dict(error.headers or {}))
            case HTTPException(status_code=400):
                refusal = Refusal("invalid_json")
            case _:
                refusal = Refusal("internal_error")
        request.state.code = refusal.code
        return refusal.response()

    for kind in (Refusal, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, refuse)
