"""How the next token is drawn from what the model holds possible."""

# B rows, V vocabulary

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from torch import Tensor

from lapilli.errors import EngineError
from lapilli.messages import Sampling


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


def choose(logits: Tensor, sampling: Sampling, dice: Sequence[random.Random]) -> Tensor:
    """Return the next token of each row, (B,) int64.

    Args:
        logits: (B, V).
        dice: one for each row, thrown once a call; unused at temperature 0. Python's own are the
            same on every device, and a row's throws do not depend on its neighbors.
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    logits = logits.float()
    # Without its maximum, no row overflows however small the temperature.
    probabilities = ((logits - logits.amax(-1, keepdim=True)) / sampling.temperature).softmax(-1)
    if sampling.top_p < 1:
        probabilities = _keep_likeliest(probabilities, sampling.top_p)
    cumulative = probabilities.cumsum(-1)
    throws = cumulative.new_tensor([die.random() for die in dice])[:, None]
    return (cumulative > throws * cumulative[:, -1:]).int().argmax(-1)


def _keep_likeliest(probabilities: Tensor, top_p: float) -> Tensor:
    """Put 0 for all but the fewest tokens that together reach `top_p`; (B, V) to (B, V).

    Source: Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration".
    """
    likeliest = probabilities.sort(-1, descending=True).values
    num_kept = (likeliest.cumsum(-1) - likeliest < top_p).sum(-1, keepdim=True)
    return probabilities * (probabilities >= likeliest.gather(-1, num_kept - 1))
