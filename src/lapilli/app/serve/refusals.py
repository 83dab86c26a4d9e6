"""Why a request is not answered: a stable code, its status, and a text that never changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.responses import JSONResponse

from lapilli.errors import (
    BusyError,
    FormatError,
    ImageError,
    ImageTooLargeError,
    LapilliError,
    PromptError,
    TooLongError,
)

REFUSALS: dict[str, tuple[int, str]] = {
    "invalid_json": (400, "The body is not JSON with content type application/json."),
    "invalid_value": (400, "A parameter has a value that is not allowed."),
    "missing_parameter": (400, "A parameter is missing."),
    "unknown_parameter": (400, "There is no such parameter."),
    "invalid_prompt": (400, "The messages cannot be written down for this model."),
    "context_length_exceeded": (400, "The prompt leaves no room for an answer."),
    "invalid_schema": (400, "The JSON schema is broken, too costly or not supported."),
    "too_many_images": (400, "There are more pictures than this server takes in a request."),
    "invalid_image": (400, "A picture is damaged, or in none of the supported formats."),
    "invalid_image_url": (400, "A picture is given neither as a data URL nor by http or https."),
    "remote_images_off": (400, "This server fetches no pictures; send a data URL."),
    "image_host_refused": (400, "This server fetches no pictures from there; send a data URL."),
    "image_fetch_failed": (400, "A picture could not be fetched; send a data URL."),
    "embeddings_unsupported": (400, "This model makes no embeddings."),
    "invalid_api_key": (401, "The API key is missing or wrong."),
    "model_not_found": (404, "There is no such model; GET /v1/models tells which there is."),
    "not_found": (404, "There is nothing here."),
    "method_not_allowed": (405, "This method is not allowed here."),
    "slow_client": (408, "The request did not arrive in time."),
    "body_too_large": (413, "The body has more bytes than this server takes."),
    "image_too_large": (413, "The pictures have more pixels or bytes than this server takes."),
    "wrong_host": (421, "A server without an API key answers under its own address alone."),
    "queue_full": (429, "Too many requests wait already; ask again later."),
    "engine_failed": (500, "The model failed to answer."),
    "internal_error": (500, "The server failed."),
    "overloaded": (503, "The server holds as much as it may; ask again later."),
    "timeout": (503, "The answer took too long; ask for a shorter one, or again later."),
}
"""Status and text by code."""

_MAX_PARAM = 100


class Refusal(Exception):  # noqa: N818 - what it is, as in "Refusal of a request"
    """A request that is not answered.

    Args:
        code: a key of `REFUSALS`.
        param: the parameter that is at fault, as a path.
        headers: sent along.
    """

    def __init__(
        self, code: str, param: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(code)
        self.code = code
        self.param = param[:_MAX_PARAM] if param else None
        self.status, self.text = REFUSALS[code]
        self.headers = dict(headers or {})
        if self.status in (429, 503):
            self.headers.setdefault("Retry-After", "1")
        if self.status == 401:
            self.headers.setdefault("WWW-Authenticate", "Bearer")

    def to_json(self) -> dict[str, Any]:
        """Return what the client is told."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        error = {"message": self.text, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}

    def response(self) -> JSONResponse:
        """Return what the client is told, with its status."""
        return JSONResponse(self.to_json(), self.status, self.headers)


# A class stands behind those that are made of it.
_BY_ERROR: tuple[tuple[type[LapilliError], str], ...] = (
    (ImageTooLargeError, "image_too_large"),
    (ImageError, "invalid_image"),
    (TooLongError, "context_length_exceeded"),
    (PromptError, "invalid_prompt"),
    (BusyError, "queue_full"),
    (FormatError, "invalid_schema"),
    (LapilliError, "engine_failed"),
)


def refusal_of(error: LapilliError, param: str | None = None) -> Refusal:
    """Return how an error is told to a client: by its class, for its text is for ourselves."""
    return Refusal(next(code for kind, code in _BY_ERROR if isinstance(error, kind)), param)


_BY_FAULT = {
    "extra_forbidden": "unknown_parameter",
    "missing": "missing_parameter",
    "json_invalid": "invalid_json",
    "model_attributes_type": "invalid_json",
}


def refusal_of_fault(faults: Sequence[Any]) -> Refusal:
    """Return how the first of pydantic's faults is told to a client."""
    first = faults[0]
    where = first["loc"][1:]  # behind "body"
    code = _BY_FAULT.get(first["type"], "invalid_value")
    if not where and code != "missing_parameter":
        code = "invalid_json"
    return Refusal(code, ".".join(map(str, where)))
