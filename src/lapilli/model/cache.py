"""Keys and values of many sequences in one memory, and attention over them.

A sequence lies in one or several stretches of the memory; whoever gives them out decides what is
shared. Sequences stand side by side in one row of tokens, without padding, and each sees itself.
"""

# L layers, G key-value heads, C tokens that the memory holds, K head width, H heads,
# N new tokens of all sequences, B sequences with one new token each, S tokens that one of them sees

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from lapilli.model.attention import attend
from lapilli.model.masks import causal_mask
from lapilli.model.spec import DecoderSpec

Stretch = tuple[int, int]
"""Places in the memory, from the first to before the second."""


@dataclass(frozen=True, slots=True)
class Span:
    """New tokens of one sequence.

    Attributes:
        stretches: where the sequence lies, in its order, and has room to grow.
        num_seen: tokens that are held already.
        num_new: tokens that follow.
    """

    stretches: Sequence[Stretch]
    num_seen: int
    num_new: int

    def held(self) -> list[Stretch]:
        """Return where the seen and the new tokens lie."""
        return _between(self.stretches, 0, self.num_seen + self.num_new)

    def last(self, count: int | None) -> list[Stretch]:
        """Return where the last `count` of them lie; all for None."""
        num_all = self.num_seen + self.num_new
        return _between(self.stretches, max(0, num_all - (count or num_all)), num_all)

    def new(self) -> list[Stretch]:
        """Return where the new tokens go."""
        return _between(self.stretches, self.num_seen, self.num_seen + self.num_new)


def _between(stretches: Sequence[Stretch], first: int, end: int) -> list[Stretch]:
    """The places of tokens `first` to before `end` of a sequence."""
    found, num_before = [], 0
    for start, stop in stretches:
        low, high = max(start, start + first - num_before), min(stop, start + end - num_before)
        if low < high:
            found.append((low, high))
        num_before += stop - start
        if num_before >= end:
            break
    return found


def places(stretches: Sequence[Stretch], device: torch.device) -> Tensor:
    """Return all places in stretches, one after the other, int64."""
    return torch.tensor([place for part in stretches for place in range(*part)], device=device)


def new_places(spans: Sequence[Span], device: torch.device) -> Tensor:
    """Return where the new tokens of all spans go, one after the other, (N,) int64."""
    return places([part for span in spans for part in span.new()], device)


class KVCache:
    """Memory for keys and values, taken once.

    Args:
        capacity: tokens that it holds, of all sequences together.

    Attributes:
        keys, values: (L, G, C, K).
    """

    def __init__(
        self, spec: DecoderSpec, capacity: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        shape = spec.num_layers, spec.num_kv_heads, capacity, spec.head_dim
        self.keys = torch.empty(shape, device=device, dtype=dtype)
        self.values = torch.empty(shape, device=device, dtype=dtype)
        self.spec = spec

    @property
    def num_bytes(self) -> int:
        """What it takes."""
        return self.keys.nbytes + self.values.nbytes

    def read(self, spans: Sequence[Span]) -> PromptView:
        """Return what `Decoder.forward` works on when the spans stand side by side."""
        return PromptView(self, spans)

    def step(self, spans: Sequence[Span]) -> StepView:
        """Return what a step works on: spans of one new token each."""
        if self.keys.device.type != "cpu":
            return GatheredView(self, spans)
        return SingleView(self, spans[0]) if len(spans) == 1 else StretchedView(self, spans)

    def layers(self, start: int, stop: int) -> list[tuple[Tensor, Tensor]]:
        """Return the keys and values in a stretch for every layer, (1, G, S, K) each."""
        keys, values = (
            memory[:, None, :, start:stop].unbind() for memory in (self.keys, self.values)
        )
        return list(zip(keys, values, strict=True))

    def held(self, layer: int, stretches: list[Stretch]) -> tuple[Tensor, Tensor]:
        """Return the keys and values in stretches, (1, G, S, K) each; views where they can be."""
        return joined(self.keys[layer], stretches), joined(self.values[layer], stretches)

    def gathered(self, layer: int, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values at (B, S) places, (B, G, S, K) each."""
        keys, values = self.keys[layer][:, index], self.values[layer][:, index]
        return keys.transpose(0, 1), values.transpose(0, 1)

    def write(self, layer: int, places: Tensor, key: Tensor, value: Tensor) -> None:
        """Keep (G, N, K) keys and values of new tokens."""
        self.keys[layer].index_copy_(1, places, key)
        self.values[layer].index_copy_(1, places, value)


class PromptView:
    """Any numbers of new tokens of several sequences."""

    def __init__(self, cache: KVCache, spans: Sequence[Span]) -> None:
        self.cache = cache
        self.places = new_places(spans, cache.keys.device)
        window, device = cache.spec.sliding_window, cache.keys.device
        self.rows = [
            (span, span.held(), causal_mask(span.num_new, span.num_seen, window, device))
            for span in spans
        ]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Keep keys and values of the new tokens, and return what these see.

        Args:
            query: (1, H, N, K).
            key, value: (1, G, N, K).

        Returns:
            (1, H, N, K).
        """
        cache = self.cache
        cache.write(layer, self.places, key[0], value[0])
        mixed, start = torch.empty_like(query), 0
        for span, held, mask in self.rows:
            end = start + span.num_new
            mixed[:, :, start:end] = attend(
                query[:, :, start:end],
                *cache.held(layer, held),
                mask,
                is_causal=mask is None and span.num_new > 1,
            )
            start = end
        return mixed


def joined(memory: Tensor, stretches: list[Stretch]) -> Tensor:
    """Return what lies in stretches of (G, C, K), (1, G, S, K); a view where that is one."""
    parts = [memory[:, start:stop] for start, stop in stretches]
    return (parts[0] if len(parts) == 1 else torch.cat(parts, 1))[None]


class StepView(Protocol):
    """One new token of each of several sequences."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, out: Tensor) -> None:
        """Keep keys and values of the new tokens, and write what these see into `out`.

        Args:
            query: (B, H, K).
            key, value: (G, B, K).
            out: (B, H, K).
        """


class StretchedView:
    """Reads the memory where it lies, sequence by sequence: what a CPU does fastest."""

    def __init__(self, cache: KVCache, spans: Sequence[Span]) -> None:
        spec = cache.spec
        self.cache = cache
        self.places = new_places(spans, cache.keys.device)
        # The heads that share keys and values stand in the place of tokens.
        self.shape = len(spans), 1, spec.num_kv_heads, spec.num_heads // spec.num_kv_heads, -1
        seen = [span.last(spec.sliding_window) for span in spans]
        # For every sequence, for every layer: keys and values of its stretches, (1, G, S, K) each.
        rows = [
            list(zip(*(cache.layers(*stretch) for stretch in part), strict=True)) for part in seen
        ]
        self.layers = list(zip(*rows, strict=True))

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, out: Tensor) -> None:
        """See `StepView`."""
        self.cache.write(layer, self.places, key, value)
        queries = query.view(self.shape).unbind()  # (1, G, H / G, K) each
        mixed = [_mix(one, held) for one, held in zip(queries, self.layers[layer], strict=True)]
        torch.cat(mixed, out=out.view(self.shape)[:, 0])


class SingleView:
    """One sequence on a CPU, in as few operations as it takes."""

    def __init__(self, cache: KVCache, span: Span) -> None:
        spec = cache.spec
        (new,) = span.new()
        self.new = cache.layers(*new)
        seen = span.last(spec.sliding_window)
        self.layers = list(zip(*(cache.layers(*stretch) for stretch in seen), strict=True))
        self.shape = 1, spec.num_kv_heads, spec.num_heads // spec.num_kv_heads, -1

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, out: Tensor) -> None:
        """See `StepView`."""
        new_key, new_value = self.new[layer]  # (1, G, 1, K)
        new_key.copy_(key)
        new_value.copy_(value)
        out.view(self.shape).copy_(_mix(query.view(self.shape), self.layers[layer]))


def _mix(query: Tensor, held: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Attend to keys and values that lie in one stretch or in several; (1, G, R, K)."""
    if len(held) == 1:
        return F.scaled_dot_product_attention(query, *held[0])
    # To copy them together for the fused kernel is faster than products of each stretch.
    keys, values = (torch.cat(parts, 2) for parts in zip(*held, strict=True))
    return F.scaled_dot_product_attention(query, keys, values)


class GatheredView:
    """Copies what all sequences see side by side and attends at once: few calls, for a GPU."""

    def __init__(self, cache: KVCache, spans: Sequence[Span]) -> None:
        spec, device = cache.spec, cache.keys.device
        self.cache = cache
        self.places = new_places(spans, cache.keys.device)
        seen = [
            torch.cat([torch.arange(*stretch) for stretch in span.last(spec.sliding_window)])
            for span in spans
        ]
        self.index = torch.nn.utils.rnn.pad_sequence(seen, batch_first=True).to(device)  # (B, S)
        lengths = torch.tensor([len(part) for part in seen], device=device)
        order = torch.arange(self.index.shape[1], device=device)
        self.mask = (order < lengths[:, None])[:, None, None]  # (B, 1, 1, S)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, out: Tensor) -> None:
        """See `StepView`."""
        self.cache.write(layer, self.places, key, value)
        keys, values = self.cache.gathered(layer, self.index)
        out.copy_(attend(query[:, :, None], keys, values, self.mask)[:, :, 0])
