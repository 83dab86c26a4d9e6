"""Numbers made of answers: agreement, overlap of boxes, F1 of multisets, intervals."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

_WORDS = {
    "grey": "gray", "colour": "color", "colours": "colors", "centre": "center", "middle": "center",
    "zero": "0", "none": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5",
    "six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
_ARTICLES = frozenset({"a", "an", "the"})
_NUMBER = re.compile(r"-?\d*\.?\d+")

Box = tuple[float, float, float, float]


def normalize(text: str) -> str:
    """Lower case without full stops, articles and spare spaces; one spelling and figures."""
    words = text.lower().replace(".", " ").replace(",", " ").split()
    return " ".join(_WORDS.get(word, word) for word in words if word not in _ARTICLES)


def exact(reference: str, answer: str) -> float:
    """1.0 if both are the same after `normalize`, else 0.0."""
    return float(normalize(reference) == normalize(answer))


def parse_box(text: str) -> Box | None:
    """The first four numbers of a text as a box; None if there are fewer or it has no area."""
    numbers = [float(number) for number in _NUMBER.findall(text)[:4]]
    if len(numbers) < 4 or numbers[0] >= numbers[2] or numbers[1] >= numbers[3]:
        return None
    return numbers[0], numbers[1], numbers[2], numbers[3]


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes x1, y1, x2, y2."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union > 0 else 0.0


def f1(truth: Iterable[Hashable], named: Iterable[Hashable]) -> float:
    """F1 of two multisets; 1.0 if both are empty."""
    true, said = Counter(truth), Counter(named)
    total = true.total() + said.total()
    return 2 * (true & said).total() / total if total else 1.0


@dataclass(frozen=True, slots=True)
class Figure:
    """A number that a benchmark is quoted by, in the unit in which it is quoted.

    Attributes:
        value: of all answers.
        low: lower end of the 95% bootstrap interval.
        high: upper end.
    """

    value: float
    low: float
    high: float


Statistic = Callable[[Sequence[float]], float]
"""A number made of sums."""


def figures(
    units: Sequence[Sequence[float]],
    statistics: Mapping[str, Statistic],
    *,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, Figure]:
    """Numbers made of sums over units, with the intervals of units drawn with replacement.

    F1 is one of sums of hits and misses, a share one of two sums, and so is a mean.

    Args:
        units: (N, K) what each question, picture or caption adds to the K sums.
        statistics: the numbers by their names, each from the K sums.
    """
    if not len(units):
        return {name: Figure(0.0, 0.0, 0.0) for name in statistics}
    # To draw how often each kind of unit comes is to draw units, and there are few kinds.
    kinds, counts = np.unique(np.asarray(units, dtype=float), axis=0, return_counts=True)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(units), counts / len(units), size=draws) @ kinds
    made = {}
    for name, statistic in statistics.items():
        low, high = np.quantile([statistic(sums) for sums in drawn], (0.025, 0.975))
        made[name] = Figure(float(statistic(counts @ kinds)), float(low), float(high))
    return made


def ratio(above: float, below: float) -> float:
    """One number for each of another, 0 if that is 0."""
    return float(above / below) if below else 0.0


def mean(values: Sequence[float], *, scale: float = 1.0) -> Figure:
    """The mean of scores; `scale` is 100 for percent."""
    return figures([(value, 1) for value in values], {"": lambda s: scale * ratio(s[0], s[1])})[""]


def bootstrap(values: Sequence[float]) -> tuple[float, float]:
    """The 95% interval of the mean, from the means of samples drawn with replacement."""
    found = mean(values)
    return found.low, found.high
