from __future__ import annotations

import random

import pytest
import torch

from lapilli.engine.sampling import choose
from lapilli.messages import Sampling

LOGITS = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()


def draw(sampling: Sampling, count: int = 4000) -> torch.Tensor:
    """How often each of four tokens is drawn, 0-1."""
    dice = [random.Random(seed) for seed in range(count)]
    tokens = choose(LOGITS.expand(count, -1), sampling, dice)
    return tokens.bincount(minlength=4) / count


def test_greedy_takes_the_likeliest() -> None:
    assert choose(LOGITS[None], Sampling(), [random.Random(0)]).tolist() == [0]


def test_tokens_come_as_often_as_they_are_likely() -> None:
    torch.testing.assert_close(draw(Sampling(temperature=1.0)), LOGITS.exp(), atol=0.025, rtol=0)


def test_temperature_sharpens() -> None:
    expected = (LOGITS / 0.5).softmax(-1)
    torch.testing.assert_close(draw(Sampling(temperature=0.5)), expected, atol=0.025, rtol=0)


@pytest.mark.parametrize(("top_p", "num_kept"), [(0.4, 1), (0.6, 2), (0.9, 3), (0.99, 4)])
def test_top_p_keeps_the_fewest_that_reach_it(top_p: float, num_kept: int) -> None:
    often = draw(Sampling(temperature=1.0, top_p=top_p))
    kept = LOGITS.exp()[:num_kept]
    torch.testing.assert_close(often[:num_kept], kept / kept.sum(), atol=0.025, rtol=0)
    assert often[num_kept:].sum() == 0


def test_tiny_temperature_is_greedy_and_does_not_overflow() -> None:
    assert draw(Sampling(temperature=1e-30)).tolist() == [1, 0, 0, 0]


def test_a_row_is_drawn_alike_alone_and_among_others() -> None:
    logits = torch.randn(8, 500, generator=torch.Generator().manual_seed(0))
    sampling = Sampling(temperature=1.0, top_p=0.9)
    together = choose(logits, sampling, [random.Random(seed) for seed in range(8)])
    alone = [choose(logits[[i]], sampling, [random.Random(i)]).item() for i in range(8)]
    assert together.tolist() == alone
