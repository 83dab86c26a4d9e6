"""The order of a run: fair to the sources, without repeats, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lapilli.data.mixture import mix

sources = st.lists(st.tuples(st.integers(1, 30), st.floats(0.01, 10)), min_size=1, max_size=5)


@given(sources, st.integers(0, 200), st.integers(0, 9))
def test_each_source_gets_its_share_and_repeats_no_record_early(
    chosen: list[tuple[int, float]], total: int, seed: int
) -> None:
    sizes, weights = [size for size, _ in chosen], [weight for _, weight in chosen]
    order = mix(sizes, weights, total, seed)
    assert order.shape == (total, 2)
    for source, size in enumerate(sizes):
        records = order[order[:, 0] == source, 1]
        assert abs(len(records) - total * weights[source] / sum(weights)) <= 1
        for start in range(0, len(records), size):
            seen = records[start : start + size]
            assert len(set(seen)) == len(seen)
            assert set(seen) <= set(range(size))


def test_the_order_depends_on_the_seed_alone() -> None:
    first, again, other = (mix([50, 20], [2, 1], 300, seed) for seed in (3, 3, 4))
    assert (first == again).all()
    assert (first != other).any()


def test_every_part_of_a_run_holds_every_source() -> None:
    order = mix([1000, 10, 500], [0.7, 0.1, 0.2], 5000, 0)
    for part in np.split(order, 10):
        counts = np.bincount(part[:, 0], minlength=3)
        assert counts == pytest.approx([350, 50, 100], abs=3)


def test_records_are_shuffled_anew_in_every_round() -> None:
    records = mix([100], [1], 300, 0)[:, 1].reshape(3, 100)
    assert (records[0] != records[1]).any() and (records[1] != records[2]).any()
    assert (records[0] != np.arange(100)).any()
