"""The pieces of answers, for whoever asked."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

from lapilli.engine.answer import Answer, Told
from lapilli.errors import LapilliError
from lapilli.messages import Piece


class Stream(Iterator[Piece]):
    """The pieces of a request's answers, as they are made.

    To iterate moves the engine on. What is not read to its end is cancelled when it is dropped.

    Args:
        answers: of the request.
        told: where the engine puts what it tells of them.
        move_on: makes a step of the engine.
    """

    def __init__(
        self, answers: Sequence[Answer], told: deque[Told], move_on: Callable[[], object]
    ) -> None:
        self._move_on = move_on
        self._answers = answers
        self._told = told

    def __next__(self) -> Piece:
        """Return the next piece.

        Raises:
            LapilliError: an answer failed; the request's others are cancelled.
        """
        while True:
            # Asked first: another thread may tell the last piece after it was looked for.
            is_over = all(answer.finish_reason is not None for answer in self._answers)
            if self._told:
                break
            if is_over:
                raise StopIteration
            self._move_on()
        told = self._told.popleft()
        if isinstance(told, LapilliError):
            self.cancel()
            raise told
        return told

    def cancel(self) -> None:
        """End the answers at the next step of the engine."""
        for answer in self._answers:
            answer.is_cancelled = True

    def __del__(self) -> None:
        self.cancel()
