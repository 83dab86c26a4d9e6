"""One new token a row: the decoder's arithmetic in as few operations as it allows.

A small model at one token spends more time on starting operations than on computing. Here the
matrices that read the same input are joined, results go to memory taken once, whose parts are
named once, and shortcuts are added inside the matrix products. `Decoder.forward` stays the plain
text of the same arithmetic, and reads the prompt.
"""

# B sequences, C positions, D width, H heads, G key-value heads, K head width,
# M perceptron width, V vocabulary

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from lapilli.model.cache import StepView
from lapilli.model.matrices import StepMatrices
from lapilli.model.spec import DecoderSpec


class Stepper:
    """Takes one new token of each of several sequences; for inference alone.

    Args:
        matrices: of the decoder.
        max_position: positions go up to before this.
    """

    def __init__(self, matrices: StepMatrices, max_position: int) -> None:
        self.decoder = decoder = matrices.decoder
        self.matrices = matrices
        weight = decoder.embed_tokens.weight
        cosines, sines = decoder.rotary(torch.arange(max_position, device=weight.device)[None])
        self.cosines = torch.stack([cosines, cosines], -2)[0, 0].to(weight.dtype)  # (C, 2, K / 2)
        self.sines = torch.stack([-sines, sines], -2)[0, 0].to(weight.dtype)
        self.buffers: dict[int, _Buffers] = {}  # by the number of sequences

    def __call__(self, tokens: Tensor, positions: Tensor, view: StepView) -> Tensor:
        """Return the (B, V) logits of what follows the new tokens.

        Args:
            tokens: (B,) int64.
            positions: (B,) int64, in their sequences.
            view: of the cache that keeps the sequences.
        """
        decoder, at = self.decoder, self._memory(len(tokens))
        torch.index_select(decoder.embed_tokens.weight, 0, tokens, out=at.x)
        torch.index_select(self.cosines, 0, positions, out=at.cosines)
        torch.index_select(self.sines, 0, positions, out=at.sines)
        for index, layer in enumerate(self.matrices.layers):
            layer.qkv.write(self._norm(layer.norm, at), at.qkv)
            # As `rope.rotate`: each half of a head's channels turns into the other.
            torch.mul(at.second, at.sine_of_first, out=at.turned_first)
            torch.mul(at.first, at.sine_of_second, out=at.turned_second)
            torch.addcmul(at.turned, at.rotary, at.cosines_of_heads, out=at.rotary)
            view.attend(index, at.query, at.key, at.value, at.mixed)
            layer.out.add(at.mixed_flat, at.x)
            layer.gate_up.write(self._norm(layer.mlp_norm, at), at.gate_up)
            torch.mul(F.silu(at.gate), at.up, out=at.gated)
            layer.down.add(at.gated, at.x)
        logits = at.x.new_empty(len(tokens), decoder.spec.vocab_size)
        self.matrices.head.write(self._norm(decoder.norm.weight, at), logits)
        return logits

    def _memory(self, rows: int) -> _Buffers:
        if rows not in self.buffers:
            self.buffers[rows] = _Buffers(self.decoder.spec, rows, self.cosines)
        return self.buffers[rows]

    def _norm(self, weight: Tensor, at: _Buffers) -> Tensor:
        """Root-mean-square norm of what the layers have summed up, (B, D)."""
        spec = self.decoder.spec
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
        self.query, key, value = heads.split((num_heads, num_kv_heads, num_kv_heads), 1)
        self.key, self.value = key.transpose(0, 1), value.transpose(0, 1)  # (G, B, K)
        self.rotary = heads[:, :num_rotary].unflatten(-1, (2, half))  # query and key
        self.first, self.second = self.rotary.unbind(-2)
        self.turned = like.new_empty(rows, num_rotary, 2, half)
        self.turned_first, self.turned_second = self.turned.unbind(-2)

        self.mixed = like.new_empty(rows, num_heads, spec.head_dim)
        self.mixed_flat = self.mixed.view(rows, num_heads * spec.head_dim)

        self.gate_up = like.new_empty(rows, 2 * spec.mlp_width)
        self.gate, self.up = self.gate_up.chunk(2, -1)
        self.gated = like.new_empty(rows, spec.mlp_width)
