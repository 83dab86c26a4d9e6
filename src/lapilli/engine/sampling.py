"""How the next token is drawn from what the model holds possible."""

# B rows, V vocabulary

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lapilli.engine.formats import Guide
from lapilli.errors import EngineError
from lapilli.messages import Sampling, TokenLogprob

MAX_LOGPROBS = 20
MAX_STOPS = 16


def check_sampling(sampling: Sampling) -> None:
    """Refuse settings that make no sense.

    Raises:
        EngineError: a value is not a number or out of range.
    """
    if sampling.max_new_tokens < 1:
        raise EngineError(f"max_new_tokens is {sampling.max_new_tokens}; give 1 or more")
    if not (math.isfinite(sampling.temperature) and sampling.temperature >= 0):
        raise EngineError(
            f"temperature is {sampling.temperature}; give 0 for the likeliest answer, or more"
        )
    if not 0 < sampling.top_p <= 1:
        raise EngineError(f"top_p is {sampling.top_p}; give a number above 0, at most 1")
    if sampling.top_k < 0:
        raise EngineError(f"top_k is {sampling.top_k}; give 0 for all tokens, or more")
    if not 0 <= sampling.min_p <= 1:
        raise EngineError(f"min_p is {sampling.min_p}; give a number from 0 to 1")
    if not (math.isfinite(sampling.repetition_penalty) and sampling.repetition_penalty > 0):
        raise EngineError(
            f"repetition_penalty is {sampling.repetition_penalty}; give 1 for none, or another "
            "number above 0"
        )
    if len(sampling.stop) > MAX_STOPS or not all(sampling.stop):
        raise EngineError(f"stop is {sampling.stop!r}; give up to {MAX_STOPS} texts, none empty")
    if sampling.num_logprobs is not None and not 0 <= sampling.num_logprobs <= MAX_LOGPROBS:
        raise EngineError(f"num_logprobs is {sampling.num_logprobs}; give 0 to {MAX_LOGPROBS}")


@dataclass(slots=True)
class Drawing:
    """How one answer is drawn, token after token.

    Attributes:
        sampling: what was asked for.
        die: thrown once a token; unused when greedy. Python's own is the same on every device, and
            its throws do not depend on other answers.
        seen: ids of the prompt and the answer so far, where they are penalized.
        guide: keeps the answer to its form; None for free text.
    """

    sampling: Sampling
    die: random.Random
    seen: set[int] = field(default_factory=set)
    guide: Guide | None = None

    @property
    def is_plain(self) -> bool:
        """The likeliest token is taken as it stands."""
        sampling = self.sampling
        return self.guide is None and sampling.temperature == 0 == sampling.repetition_penalty - 1

    def take(self, token: int) -> None:
        """Take note of a token that goes on in the answer.

        Raises:
            EngineError: the form has become too costly to follow.
        """
        if self.sampling.repetition_penalty != 1:
            self.seen.add(token)
        if self.guide is not None:
            self.guide.advance(token)


def choose(logits: Tensor, drawings: Sequence[Drawing]) -> list[int | EngineError]:
    """Return the next token of each row; an error for a row whose form cannot be followed.

    Args:
        logits: (B, V).
        drawings: one for each row.
    """
    if all(drawing.is_plain for drawing in drawings):
        return list(logits.argmax(-1).tolist())
    chosen: list[int | EngineError] = []
    for row, drawing in zip(logits, drawings, strict=True):
        try:
            chosen.append(int(row.argmax() if drawing.is_plain else _draw(row.float(), drawing)))
        except EngineError as error:
            chosen.append(error)
    return chosen


def _draw(logits: Tensor, drawing: Drawing) -> Tensor:
    """Return one token; a row is drawn by itself, so that its neighbors cannot matter. (V,)"""
    sampling = drawing.sampling
    if sampling.repetition_penalty != 1:
        logits = _penalize(logits, drawing.seen, sampling.repetition_penalty)
    if drawing.guide is not None:
        logits = drawing.guide.restrict(logits)
    if sampling.temperature == 0:
        return logits.argmax(-1)
    # Without its maximum, no row overflows however small the temperature.
    probabilities = ((logits - logits.max()) / sampling.temperature).softmax(-1)
    if 0 < sampling.top_k < len(probabilities):
        probabilities = _at_least(probabilities, probabilities.topk(sampling.top_k).values[-1])
    if sampling.top_p < 1:
        probabilities = _keep_likeliest(probabilities, sampling.top_p)
    if sampling.min_p > 0:
        probabilities = _at_least(probabilities, probabilities.max() * sampling.min_p)
    cumulative = probabilities.cumsum(-1)
    return (cumulative > drawing.die.random() * cumulative[-1]).int().argmax(-1)


def _penalize(logits: Tensor, seen: set[int], penalty: float) -> Tensor:
    """Make ids that were seen less likely; (V,) to (V,).

    Source: Keskar et al. 2019, "CTRL", with the sign of negative logits heeded.
    """
    ids = torch.tensor(sorted(seen), dtype=torch.long, device=logits.device)
    values = logits[ids]
    return logits.index_copy(0, ids, torch.where(values > 0, values / penalty, values * penalty))


def _at_least(probabilities: Tensor, least: Tensor) -> Tensor:
    return probabilities * (probabilities >= least)


def _keep_likeliest(probabilities: Tensor, top_p: float) -> Tensor:
    """Put 0 for all but the fewest tokens whose share of the whole reaches `top_p`; (V,) to (V,).

    Source: Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration".
    """
    likeliest = probabilities.sort(-1, descending=True).values
    wanted = top_p * likeliest.sum()
    num_kept = int((likeliest.cumsum(-1) - likeliest < wanted).sum())
    return _at_least(probabilities, likeliest[num_kept - 1])


def logprobs(logits: Tensor, token: int, count: int, word: Callable[[int], str]) -> TokenLogprob:
    """Return how likely a token was, and what else was.

    Args:
        logits: (V,), before any setting changed them.
        count: of the likeliest tokens that are told.
        word: the text of a token.
    """
    values = logits.float().log_softmax(-1)
    top = values.topk(min(count, len(values)))
    return TokenLogprob(
        word(token),
        float(values[token]),
        tuple(
            (word(index), value)
            for index, value in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ),
    )
