from __future__ import annotations

import math
import random

import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from lapilli.engine.sampling import Drawing, check_sampling, choose, logprobs
from lapilli.errors import EngineError
from lapilli.messages import Sampling

LOGITS = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()


def drawings(sampling: Sampling, count: int, seen: set[int] | None = None) -> list[Drawing]:
    return [Drawing(sampling, random.Random(seed), seen or set()) for seed in range(count)]


def draw(sampling: Sampling, logits: torch.Tensor = LOGITS, count: int = 4000) -> torch.Tensor:
    """How often each token is drawn, 0-1."""
    tokens = torch.tensor(choose(logits.expand(count, -1), drawings(sampling, count)))
    return tokens.bincount(minlength=len(logits)) / count


def test_greedy_takes_the_likeliest() -> None:
    assert choose(LOGITS[None], drawings(Sampling(), 1)) == [0]


@pytest.mark.parametrize(
    ("sampling", "theirs"),
    [
        (Sampling(temperature=1.0), []),
        (Sampling(temperature=0.5), [TemperatureLogitsWarper(0.5)]),
        (Sampling(temperature=1.0, top_k=2), [TopKLogitsWarper(2)]),
        (Sampling(temperature=1.0, top_p=0.4), [TopPLogitsWarper(0.4)]),
        (Sampling(temperature=1.0, top_p=0.6), [TopPLogitsWarper(0.6)]),
        (Sampling(temperature=1.0, top_p=0.9), [TopPLogitsWarper(0.9)]),
        (Sampling(temperature=1.0, min_p=0.4), [MinPLogitsWarper(0.4)]),
        (
            Sampling(temperature=2.0, top_k=3, top_p=0.7),
            [TemperatureLogitsWarper(2.0), TopKLogitsWarper(3), TopPLogitsWarper(0.7)],
        ),
    ],
)
def test_tokens_come_as_often_as_with_the_warpers_of_transformers(
    sampling: Sampling, theirs: list[object]
) -> None:
    scores = LOGITS[None]
    for warper in theirs:
        scores = warper(torch.zeros(1, 1, dtype=torch.long), scores)  # type: ignore[operator]
    torch.testing.assert_close(draw(sampling), scores[0].softmax(-1), atol=0.025, rtol=0)


def test_penalty_is_that_of_transformers() -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(0))
    for seen in ({int(logits.argmax())}, set(logits.topk(5).indices.tolist())):
        theirs = RepetitionPenaltyLogitsProcessor(1.8)(torch.tensor([sorted(seen)]), logits[None])
        ours = choose(logits[None], drawings(Sampling(repetition_penalty=1.8), 1, seen))
        assert ours == theirs.argmax(-1).tolist()


def test_tiny_temperature_is_greedy_and_does_not_overflow() -> None:
    assert draw(Sampling(temperature=1e-30), count=100).tolist() == [1, 0, 0, 0]


def test_a_row_is_drawn_alike_alone_and_among_others() -> None:
    logits = torch.randn(8, 500, generator=torch.Generator().manual_seed(0))
    sampling = Sampling(temperature=1.0, top_p=0.9, top_k=50)
    together = choose(logits, drawings(sampling, 8))
    alone = [choose(logits[[i]], [drawings(sampling, 8)[i]])[0] for i in range(8)]
    assert together == alone


def test_rows_of_one_batch_may_be_drawn_by_different_settings() -> None:
    warm = Drawing(Sampling(temperature=3.0), random.Random(3))
    greedy = Drawing(Sampling(), random.Random(0))
    assert choose(LOGITS.expand(2, -1), [greedy, warm])[0] == 0


def test_logprobs_are_of_the_untouched_logits() -> None:
    told = logprobs(LOGITS, 2, 2, lambda token: "abcd"[token])
    assert told.token == "c"
    assert told.logprob == pytest.approx(math.log(0.15), abs=1e-5)
    assert [word for word, _ in told.top] == ["a", "b"]
    assert [value for _, value in told.top] == pytest.approx([math.log(0.5), math.log(0.3)])


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (Sampling(0), "max_new_tokens is 0"),
        (Sampling(temperature=math.nan), "temperature is nan"),
        (Sampling(temperature=-0.1), "temperature is -0.1"),
        (Sampling(top_p=0), "top_p is 0"),
        (Sampling(top_p=math.nan), "top_p is nan"),
        (Sampling(top_k=-1), "top_k is -1"),
        (Sampling(min_p=1.5), "min_p is 1.5"),
        (Sampling(repetition_penalty=0), "repetition_penalty is 0"),
        (Sampling(stop=("",)), "stop is"),
        (Sampling(stop=("a",) * 17), "stop is"),
        (Sampling(num_logprobs=21), "num_logprobs is 21"),
    ],
)
def test_senseless_settings_are_refused(sampling: Sampling, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        check_sampling(sampling)
