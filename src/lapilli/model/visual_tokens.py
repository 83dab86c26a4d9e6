"""Which of a picture's features the language model sees, where it is to see fewer.

The choice depends on the picture alone, not on what is asked: what was read of it stays of use for
the next question.
"""

# P features of one picture, N those that are kept, D width

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def choose_tokens(features: Tensor, count: int, choice: str = "diverse") -> Tensor:
    """Return which features are kept, (N,) int64 in reading order.

    Args:
        features: (P, D).
        count: N; all are kept where there are no more.
        choice: a name in CHOICES.
    """
    if count >= len(features):
        return torch.arange(len(features), device=features.device)
    return CHOICES[choice](features, count).sort().values


def _diverse(features: Tensor, count: int) -> Tensor:
    """The features that differ most: each is the one farthest from those before it.

    Source: Alvar et al. 2025, "DivPrune".
    """
    directions = F.normalize(features.float(), dim=-1)
    # The first is the one least like all others.
    chosen = (directions @ directions.mean(0)).argmin()[None]
    nearest = directions @ directions[chosen[0]]  # (P,) likeness to the nearest that is chosen
    for _ in range(count - 1):
        nearest[chosen[-1]] = torch.inf
        chosen = torch.cat([chosen, nearest.argmin()[None]])
        nearest = torch.maximum(nearest, directions @ directions[chosen[-1]])
    return chosen


def _uniform(features: Tensor, count: int) -> Tensor:
    """Features at equal distances in reading order."""
    places = (torch.arange(count, dtype=torch.float64) + 0.5) * len(features) / count
    return places.long().to(features.device)


def _random(features: Tensor, count: int) -> Tensor:
    """Any features, the same of every picture."""
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))
    return order[:count].to(features.device)


CHOICES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "diverse": _diverse,
    "uniform": _uniform,
    "random": _random,
}
"""Ways to choose; the last two are there to be compared with."""
