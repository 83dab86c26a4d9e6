"""Which record comes when: sources by weight, each gone through without repeats, shuffled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def mix(sizes: Sequence[int], weights: Sequence[float], total: int, seed: int) -> np.ndarray:
    """Return the order of a whole run, the same for the same arguments.

    A source's records come once each before any comes again.

    Args:
        sizes: records of each source.
        weights: share of the run each source gets; need not sum to 1.
        total: records of the run.

    Returns:
        (total, 2) int64: source and record.
    """
    rng = np.random.default_rng(seed)
    shares = np.asarray(weights, dtype=float) / np.sum(weights)
    edges = np.round(np.concatenate([[0], np.cumsum(shares)]) * total).astype(int)
    parts = []
    for source, size in enumerate(sizes):
        count = edges[source + 1] - edges[source]
        rounds = [rng.permutation(size) for _ in range(-(-count // size))]
        picked = np.concatenate(rounds)[:count] if rounds else np.empty(0, dtype=int)
        parts.append(np.stack([np.full(count, source), picked], 1))
    order = np.concatenate(parts)
    # Epochs of a source keep their order among themselves: only the places of sources are mixed.
    places = np.argsort(_spread(order[:, 0], rng))
    return order[places]


def _spread(sources: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a sort key that spreads each source evenly over the run, with jitter."""
    keys = np.empty(len(sources))
    for source in np.unique(sources):
        where = np.flatnonzero(sources == source)
        keys[where] = (np.arange(len(where)) + rng.random(len(where))) / len(where)
    return keys
