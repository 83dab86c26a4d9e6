"""One new token a row: the decoder's arithmetic in as few operations as it allows.

A small model at one token spends more time on starting operations than on computing. Here the
matrices that read the same input are joined, results go to memory taken once, whose parts are
named once, and shortcuts are added inside the matrix products. `Decoder.forward` stays the plain
text of the same arithmetic, and reads the prompt.
"""

# B rows, S tokens seen so far and new, C capacity of the cache, D width, H heads,
# G key-value heads, K head width, M perceptron width, V vocabulary

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from lapilli.model.decoder import KVCache
from lapilli.model.matrices import StepMatrices
from lapilli.model.spec import DecoderSpec


class Steps(Protocol):
    """What continues the rows of a cache, whatever the decoder."""

    def __call__(self, tokens: Tensor) -> Tensor:
        """Take (B,) int64 tokens into the cache; return the (B, V) logits of those after them."""

    def keep(self, rows: Tensor) -> None:
        """Go on with `rows` alone, (number kept,) int64 indices."""


class Stepper:
    """Continues what a cache holds, one token a row at a time; for inference alone.

    Args:
        matrices: of the decoder.
        cache: filled with the rows' prompts.
        positions: (B,) int64 place of each row's next token in its sequence.
        is_token: (B, S) bool, false where a prompt was padded; None where none was.
    """

    def __init__(
        self, matrices: StepMatrices, cache: KVCache, positions: Tensor, is_token: Tensor | None
    ) -> None:
        self.decoder = decoder = matrices.decoder
        self.cache = cache
        self.positions = positions
        self.matrices = matrices
        self.buffers = _Buffers(decoder.spec, len(positions), cache.keys)
        capacity = cache.keys.shape[3]
        cosines, sines = decoder.rotary(torch.arange(capacity, device=positions.device)[None])
        dtype = cache.keys.dtype
        self.cosines = torch.stack([cosines, cosines], -2)[0, 0].to(dtype)  # (C, 2, K / 2)
        self.sines = torch.stack([-sines, sines], -2)[0, 0].to(dtype)
        self.mask: Tensor | None = None  # (B, 1, 1, C)
        if is_token is not None:
            self.mask = is_token.new_ones(len(positions), 1, 1, capacity)
            self.mask[..., : is_token.shape[1]] = is_token[:, None, None]

    def __call__(self, tokens: Tensor) -> Tensor:
        """Take (B,) int64 tokens into the cache; return the (B, V) logits of those after them."""
        decoder, cache, at = self.decoder, self.cache, self.buffers
        new, end = cache.length, cache.length + 1
        # A row's places in the cache are as far apart as its positions.
        window = decoder.spec.sliding_window
        begin = 0 if window is None else max(0, end - window)
        is_grouped = decoder.spec.num_heads != decoder.spec.num_kv_heads
        mask = None if self.mask is None else self.mask[..., begin:end]
        torch.index_select(decoder.embed_tokens.weight, 0, tokens, out=at.x)
        torch.index_select(self.cosines, 0, self.positions, out=at.cosines)
        torch.index_select(self.sines, 0, self.positions, out=at.sines)
        layers = zip(
            self.matrices.layers,
            cache.keys[:, :, :, new].unbind(),
            cache.values[:, :, :, new].unbind(),
            cache.keys[:, :, :, begin:end].unbind(),
            cache.values[:, :, :, begin:end].unbind(),
            strict=True,
        )
        for layer, new_key, new_value, keys, values in layers:
            layer.qkv.write(self._norm(layer.norm), at.qkv)
            # As `rope.rotate`: each half of a head's channels turns into the other.
            torch.mul(at.second, at.sine_of_first, out=at.turned_first)
            torch.mul(at.first, at.sine_of_second, out=at.turned_second)
            torch.addcmul(at.turned, at.rotary, at.cosines_of_heads, out=at.rotary)
            new_key.copy_(at.key)
            new_value.copy_(at.value)
            mixed = F.scaled_dot_product_attention(
                at.query, keys, values, mask, enable_gqa=is_grouped
            )  # (B, H, 1, K)
            layer.out.add(mixed.flatten(1), at.x)
            layer.gate_up.write(self._norm(layer.mlp_norm), at.gate_up)
            torch.mul(F.silu(at.gate), at.up, out=at.gated)
            layer.down.add(at.gated, at.x)
        cache.length = end
        self.positions = self.positions + 1
        logits = at.x.new_empty(len(tokens), decoder.spec.vocab_size)
        self.matrices.head.write(self._norm(decoder.norm.weight), logits)
        return logits

    def keep(self, rows: Tensor) -> None:
        """Go on with `rows` alone, (number kept,) int64 indices."""
        self.cache.keep(rows)
        self.positions = self.positions[rows]
        if self.mask is not None:
            self.mask = self.mask[rows]
        self.buffers = _Buffers(self.decoder.spec, len(rows), self.cache.keys)

    def _norm(self, weight: Tensor) -> Tensor:
        """Root-mean-square norm of what the layers have summed up, (B, D)."""
        spec, at = self.decoder.spec, self.buffers
        if at.x.dtype != torch.float32 or at.x.device.type != "cpu":
            return F.rms_norm(at.x, (spec.width,), weight, spec.norm_eps)
        # The library has no kernel of its own for a CPU: these operations take half its time.
        # sqrt(mean of squares + eps) = hypot(length, sqrt(D eps)) / sqrt(D)
        torch.linalg.vector_norm(at.x, dim=-1, keepdim=True, out=at.length)
        torch.hypot(at.length, at.floor, out=at.length)
        torch.mul(at.x, weight, out=at.normed)
        return torch.addcdiv(
            at.zero, at.normed, at.length, value=math.sqrt(spec.width), out=at.normed
        )


class _Buffers:
    """Memory of one step, taken once, and names of its parts.

    Args:
        like: a tensor of the type, and on the device, to compute with.
    """

    def __init__(self, spec: DecoderSpec, rows: int, like: Tensor) -> None:
        num_heads, num_kv_heads, half = spec.num_heads, spec.num_kv_heads, spec.head_dim // 2
        num_rotary = num_heads + num_kv_heads
        num_all = num_rotary + num_kv_heads

        self.x = like.new_empty(rows, spec.width)
        self.normed = like.new_empty(rows, spec.width)
        self.length = like.new_empty(rows, 1)
        self.zero = like.new_zeros(1)
        self.floor = like.new_tensor(math.sqrt(spec.width * spec.norm_eps))

        self.cosines = like.new_empty(rows, 2, half)
        self.sines = like.new_empty(rows, 2, half)
        self.cosines_of_heads = self.cosines[:, None]
        self.sine_of_first, self.sine_of_second = self.sines[:, None].unbind(-2)

        self.qkv = like.new_empty(rows, num_all * spec.head_dim)
        heads = self.qkv.view(rows, num_all, spec.head_dim)
        query, self.key, self.value = heads.split((num_heads, num_kv_heads, num_kv_heads), 1)
        self.query = query[:, :, None]  # (B, H, 1, K)
        self.rotary = heads[:, :num_rotary].unflatten(-1, (2, half))  # query and key
        self.first, self.second = self.rotary.unbind(-2)
        self.turned = like.new_empty(rows, num_rotary, 2, half)
        self.turned_first, self.turned_second = self.turned.unbind(-2)

        self.gate_up = like.new_empty(rows, 2 * spec.mlp_width)
        self.gate, self.up = self.gate_up.chunk(2, -1)
        self.gated = like.new_empty(rows, spec.mlp_width)
