"""Embeddings for words that a tokenizer has beyond them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lapilli.model.spec import LlavaSpec

_TABLES = ("language_model.embed_tokens.weight", "language_model.lm_head.weight")
_MULTIPLE = 64
"""Published conversions pad to it; matrices of such sizes are the fastest, too."""


def with_room_for_image(
    spec: LlavaSpec, weights: dict[str, Tensor]
) -> tuple[LlavaSpec, dict[str, Tensor]]:
    """Return a model whose tables hold a row for the token that keeps a picture's place.

    As it is where they do. A new row is the mean of the others, so that no new word is ever the
    most likely one.

    Args:
        weights: by our names; the head may be left out where it is tied.
    """
    if spec.image_token_id < spec.decoder.vocab_size:
        return spec, weights
    size = -(-(spec.image_token_id + 1) // _MULTIPLE) * _MULTIPLE
    grown = {name: _grown(weights[name], size) for name in _TABLES if name in weights}
    return replace(spec, decoder=replace(spec.decoder, vocab_size=size)), weights | grown


def _grown(table: Tensor, num_rows: int) -> Tensor:
    mean = table.float().mean(0, keepdim=True).to(table.dtype)
    return torch.cat([table, mean.expand(num_rows - len(table), -1)])
