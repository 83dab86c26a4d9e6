from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lapilli.model.visual_tokens import CHOICES, choose_tokens


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("count", [1, 7, 63, 64, 100])
def test_as_many_as_wanted_are_kept_in_their_order(choice: str, count: int) -> None:
    kept = choose_tokens(torch.randn(64, 8), count, choice)
    assert len(kept) == min(count, 64)
    assert kept.tolist() == sorted(set(kept.tolist()))
    assert kept.tolist() == choose_tokens(torch.randn(64, 8), 64, choice)[kept].tolist()


def test_diverse_features_are_kept_and_repetitions_dropped() -> None:
    kinds = F.normalize(torch.randn(4, 16, generator=torch.Generator().manual_seed(0)))
    background = kinds[:1].expand(60, -1)
    features = torch.cat([background[:20], kinds[1:2], background[:30], kinds[2:], background[:10]])
    kept = choose_tokens(features, 4, "diverse").tolist()
    assert {20, 51, 52} < set(kept)


def test_uniform_features_lie_at_equal_distances() -> None:
    assert choose_tokens(torch.zeros(10, 2), 5, "uniform").tolist() == [1, 3, 5, 7, 9]
