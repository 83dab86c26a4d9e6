"""Keys and values kept in fewer bytes than they are computed in, and widened when they are read.

They save memory, not time: more tokens, or more conversations, fit.
"""

# L layers, G key-value heads, C tokens that the memory holds, K head width,
# N new tokens of all sequences, B sequences with one new token each, S tokens that one of them sees

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from lapilli.model.attention import attend
from lapilli.model.cache import GatheredView, KVCache, Span, StepView, Stretch, joined, new_places
from lapilli.model.spec import DecoderSpec

Kept = Literal["bf16", "int8"]
KEPT: tuple[Kept, ...] = get_args(Kept)


def make_cache(
    spec: DecoderSpec,
    capacity: int,
    device: torch.device,
    dtype: torch.dtype,
    kept: Kept | None = None,
) -> KVCache:
    """Return memory for keys and values.

    Args:
        dtype: that the model computes in.
        kept: how they are kept; None for `dtype`.
    """
    if kept == "int8":
        return Int8Cache(spec, capacity, device, dtype)
    if kept == "bf16" and dtype != torch.bfloat16:
        return Bf16Cache(spec, capacity, device, dtype)
    return KVCache(spec, capacity, device, dtype)


def bytes_per_token(spec: DecoderSpec, dtype: torch.dtype, kept: Kept | None = None) -> int:
    """Return what one token takes in such a memory, in all layers."""
    return make_cache(spec, 1, torch.device("meta"), dtype, kept).num_bytes


class Bf16Cache(KVCache):
    """Keeps bf16 for a model that computes in another type.

    Args:
        dtype: that the model computes in.
    """

    def __init__(
        self, spec: DecoderSpec, capacity: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        super().__init__(spec, capacity, device, torch.bfloat16)
        self.dtype = dtype

    def step(self, spans: Sequence[Span]) -> StepView:
        """See `KVCache.step`."""
        return _step(self, spans)

    def held(self, layer: int, stretches: list[Stretch]) -> tuple[Tensor, Tensor]:
        """See `KVCache.held`."""
        keys, values = super().held(layer, stretches)
        return keys.to(self.dtype), values.to(self.dtype)

    def gathered(self, layer: int, index: Tensor) -> tuple[Tensor, Tensor]:
        """See `KVCache.gathered`."""
        keys, values = super().gathered(layer, index)
        return keys.to(self.dtype), values.to(self.dtype)

    def write(self, layer: int, places: Tensor, key: Tensor, value: Tensor) -> None:
        """See `KVCache.write`."""
        super().write(layer, places, key.bfloat16(), value.bfloat16())


class Int8Cache(KVCache):
    """Keeps 8 bits a number, and a step for each token and head.

    Args:
        dtype: that the model computes in.

    Attributes:
        key_steps, value_steps: (L, G, C, 1).
    """

    def __init__(
        self, spec: DecoderSpec, capacity: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        super().__init__(spec, capacity, device, torch.int8)
        shape = *self.keys.shape[:-1], 1
        self.key_steps = torch.empty(shape, device=device, dtype=dtype)
        self.value_steps = torch.empty(shape, device=device, dtype=dtype)

    @property
    def num_bytes(self) -> int:
        """What it takes."""
        return super().num_bytes + self.key_steps.nbytes + self.value_steps.nbytes

    def step(self, spans: Sequence[Span]) -> StepView:
        """See `KVCache.step`."""
        return _step(self, spans)

    def held(self, layer: int, stretches: list[Stretch]) -> tuple[Tensor, Tensor]:
        """See `KVCache.held`."""
        keys, values = super().held(layer, stretches)
        return (
            keys * joined(self.key_steps[layer], stretches),
            values * joined(self.value_steps[layer], stretches),
        )

    def gathered(self, layer: int, index: Tensor) -> tuple[Tensor, Tensor]:
        """See `KVCache.gathered`."""
        keys, values = super().gathered(layer, index)
        return (
            keys * self.key_steps[layer][:, index].transpose(0, 1),
            values * self.value_steps[layer][:, index].transpose(0, 1),
        )

    def write(self, layer: int, places: Tensor, key: Tensor, value: Tensor) -> None:
        """See `KVCache.write`."""
        keys, key_steps = _codes(key)
        values, value_steps = _codes(value)
        super().write(layer, places, keys, values)
        self.key_steps[layer].index_copy_(1, places, key_steps)
        self.value_steps[layer].index_copy_(1, places, value_steps)


def _codes(x: Tensor) -> tuple[Tensor, Tensor]:
    """(G, N, K) to int8, and its (G, N, 1) steps."""
    steps = (x.abs().amax(-1, keepdim=True) / 127).clamp(min=torch.finfo(x.dtype).tiny)
    return (x / steps).round().clamp(-127, 127).to(torch.int8), steps


def _step(cache: KVCache, spans: Sequence[Span]) -> StepView:
    view = WidenedView if cache.keys.device.type == "cpu" else GatheredView
    return view(cache, spans)


class WidenedView:
    """Widens what each sequence sees, one after the other, and attends to it; for a CPU."""

    def __init__(self, cache: KVCache, spans: Sequence[Span]) -> None:
        self.cache = cache
        self.places = new_places(spans, cache.keys.device)
        self.seen = [span.last(cache.spec.sliding_window) for span in spans]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, out: Tensor) -> None:
        """See `lapilli.model.cache.StepView`."""
        self.cache.write(layer, self.places, key, value)
        for row, seen in enumerate(self.seen):
            held = self.cache.held(layer, seen)
            out[row] = attend(query[row, None, :, None], *held, None)[0, :, 0]
