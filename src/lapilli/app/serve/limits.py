"""What the server takes at most, and how much of its memory is lent to requests."""

from __future__ import annotations

from dataclasses import dataclass

from lapilli.app.serve.refusals import Refusal
from lapilli.errors import ConfigError


@dataclass(frozen=True)
class Limits:
    """What the server takes at most.

    Attributes:
        body_bytes: of a request.
        held_bytes: that all requests together may hold, bodies and opened pictures.
        images: pictures in a request.
        pixels: of a request's pictures together.
        characters: of a request's words together.
        answers: to one request.
        waiting: answers that wait for their turn.
        answer_seconds: from a request's arrival to its answer's end.
        client_seconds: for a client to send what it began to send, or to read what it is sent.
        fetch_seconds: for a picture from another host, redirects included.

    Raises:
        ConfigError: a limit is not positive.
    """

    body_bytes: int = 32 * 2**20
    held_bytes: int = 2**31
    images: int = 16
    pixels: int = 40_000_000
    characters: int = 2**18
    answers: int = 8
    waiting: int = 64
    answer_seconds: float = 300.0
    client_seconds: float = 30.0
    fetch_seconds: float = 10.0

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            least = 0 if name in ("waiting", "images") else 1
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}; give {least} or more")


class Budget:
    """The bytes that requests hold, all of them together; used by the event loop alone."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.held_bytes = 0


class Share:
    """What one request holds of the budget, as a context manager that gives it back."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._held_bytes = 0

    def take(self, num_bytes: int) -> None:
        """Hold so many bytes more.

        Raises:
            Refusal: all requests together would hold too much.
        """
        if self._budget.held_bytes + num_bytes > self._budget.max_bytes:
            raise Refusal("overloaded")
        self._budget.held_bytes += num_bytes
        self._held_bytes += num_bytes

    def __enter__(self) -> Share:
        return self

    def __exit__(self, *_: object) -> None:
        self._budget.held_bytes -= self._held_bytes
        self._held_bytes = 0
