"""What the server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lapilli.app.serve.limits import Budget
from lapilli.engine.settings import State

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0)


class Metrics:
    """Counts requests, and asks the engine for the rest.

    Args:
        state: tells what the engine does.
        budget: what requests hold.
    """

    def __init__(self, state: Callable[[], State], budget: Budget) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_EngineCollector(state, budget))
        self.requests = Counter(
            "lapilli_requests", "Requests by route and status.", ("route", "status"),
            registry=self._registry,
        )  # fmt: skip
        self.refusals = Counter(
            "lapilli_refusals", "Requests that were not answered, by the code of their error.",
            ("code",), registry=self._registry,
        )  # fmt: skip
        self.disconnects = Counter(
            "lapilli_disconnects", "Clients that left before the end.", registry=self._registry
        )
        self.seconds = Histogram(
            "lapilli_request_seconds", "From a request's arrival to its end.", ("route",),
            buckets=_SECONDS, registry=self._registry,
        )  # fmt: skip
        self.first_token_seconds = Histogram(
            "lapilli_first_token_seconds", "From a request, read and checked, to its first token.",
            buckets=_SECONDS, registry=self._registry,
        )  # fmt: skip

    def text(self) -> bytes:
        """Return all figures in Prometheus' text form."""
        return generate_latest(self._registry)


class _EngineCollector(Collector):
    def __init__(self, state: Callable[[], State], budget: Budget) -> None:
        self._state = state
        self._budget = budget

    def collect(self) -> Iterator[Metric]:
        """Yield the engine's figures as they are now."""
        state = self._state()
        counts = state.counts
        for name, about, value in (
            ("answers", "Answers that ended.", counts.answers),
            ("prompt_tokens", "Tokens of prompts that were begun.", counts.prompt_tokens),
            ("reused_tokens", "Those of them found in the cache.", counts.reused_tokens),
            ("answer_tokens", "Tokens made.", counts.answer_tokens),
            ("pictures", "Pictures encoded.", state.pictures),
        ):
            yield CounterMetricFamily(f"lapilli_{name}", about, value=value)
        for name, about, value in (
            ("waiting", "Answers that wait for their turn.", state.waiting),
            ("running", "Answers that are being made.", state.running),
            ("cache_tokens", "Tokens that the cache can hold.", state.cache_tokens),
            ("cache_held_tokens", "Those that running answers hold.", state.held_tokens),
            ("cache_known_tokens", "Those that a prompt may use again.", state.known_tokens),
            ("kept_pictures", "Pictures whose features are kept.", state.kept_pictures),
            ("held_bytes", "Bytes that requests hold.", self._budget.held_bytes),
        ):
            yield GaugeMetricFamily(f"lapilli_{name}", about, value=value)
