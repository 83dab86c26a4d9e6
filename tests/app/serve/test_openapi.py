"""The server's own description, and what follows from it for requests of every kind."""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Any

import httpx
import pytest
import schemathesis
from asking import Served
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

ROUTES = {
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/models",
    "/v1/models/{name}",
    "/health",
    "/metrics",
}
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]


@pytest.fixture(scope="module")
def schema(served: Served) -> Any:
    return schemathesis.openapi.from_url(f"{served.url}/openapi.json")


def test_every_route_is_described(served: Served) -> None:
    described = httpx.get(f"{served.url}/openapi.json").json()
    assert set(described["paths"]) == ROUTES
    for path in described["paths"].values():
        for operation in path.values():
            assert {"4XX", "5XX"} <= set(operation["responses"])


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("route", sorted(ROUTES))
def test_requests_of_every_kind_are_answered_as_described(
    schema: Any, route: str, mode: GenerationMode
) -> None:
    (operation,) = [found.ok() for found in schema.get_all_operations() if found.ok().path == route]
    statuses: Counter[int] = Counter()

    @settings(
        max_examples=30,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        body = case.body
        if isinstance(body, dict) and isinstance(body.get("model"), str):
            body["model"] = "small"
        if isinstance(body, dict) and mode is GenerationMode.POSITIVE:
            body["max_tokens"] = 4
            body.pop("max_completion_tokens", None)
            body.pop("stream", None)
        response = case.call_and_validate(checks=CHECKS, timeout=60)
        statuses[response.status_code] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tools, about each other
        try:
            ask()
        except Unsatisfiable:
            assert mode is GenerationMode.NEGATIVE  # where nothing is given, nothing is wrong
    if mode is GenerationMode.POSITIVE and route != "/v1/embeddings":
        assert 200 in statuses or route == "/v1/models/{name}", statuses
    elif "completions" in route:
        assert set(statuses) == {400}, statuses
