"""A decoder's matrices as one-token steps read them: joined, and on a CPU stored in half the bytes.

At one token the time goes to reading weights. Weights that came as bf16 or fp16 fit into fp16 but
for what is too small to matter, so a CPU reads them from there and computes in fp32.
"""

# B rows, I inputs, O outputs, R rank, D width, H heads, G key-value heads, K head width,
# M perceptron width

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lapilli.model.decoder import Decoder, Layer
from lapilli.model.lora import is_lora, low_rank
from lapilli.model.quantize import QuantizedLinear, quantized_layers, quantized_product

MAX_HALVED_BYTES = 2**28
"""Decoders above this keep to their own weights: halves beside them would cost too much memory."""
MAX_HALVED_HEAD_BYTES = 2**30
"""Of the head, where the layers have smaller weights: a large vocabulary's would else take most of
a step, and a half of it is less than what the layers gave up."""
ROUNDING = 2.0**-24
"""What halving may change in a weight: the step between the smallest numbers of fp16."""


class Matrix(Protocol):
    """What takes (B, I) to (B, O)."""

    def write(self, x: Tensor, out: Tensor) -> None:
        """Write the product into `out`."""

    def add(self, x: Tensor, out: Tensor) -> None:
        """Add the product to `out`."""


class OwnMatrix:
    """Reads the decoder's own weight.

    Args:
        weight: (O, I).
        bias: (O,).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight, self.bias = weight.t(), bias

    def write(self, x: Tensor, out: Tensor) -> None:
        """Write the product into `out`."""
        if self.bias is None:
            torch.mm(x, self.weight, out=out)
        else:
            torch.addmm(self.bias, x, self.weight, out=out)

    def add(self, x: Tensor, out: Tensor) -> None:
        """Add the product to `out`."""
        torch.addmm(out, x, self.weight, out=out)


class HalvedMatrix:
    """Reads a copy of the weight in fp16, and computes in fp32; for a CPU that can.

    Args:
        weight: (O, I) fp32.
        bias: (O,).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.packed: Any = torch.ops.quantized.linear_prepack_fp16(weight, bias)
        self.multiply = torch.ops.quantized.linear_dynamic_fp16.default

    def write(self, x: Tensor, out: Tensor) -> None:
        """Write the product into `out`."""
        out.copy_(self.multiply(x, self.packed))

    def add(self, x: Tensor, out: Tensor) -> None:
        """Add the product to `out`."""
        out.add_(self.multiply(x, self.packed))


class AdaptedMatrix:
    """A matrix, and beside it what an adapter adds to its product.

    Args:
        matrix: of the weights alone.
        a: (R, I), of all adapters that read the same input.
        b: (O, R).
    """

    def __init__(self, matrix: Matrix, a: Tensor, b: Tensor) -> None:
        self.matrix, self.a, self.b = matrix, a, b

    def write(self, x: Tensor, out: Tensor) -> None:
        """Write the product into `out`."""
        self.matrix.write(x, out)
        out.add_(self._product(x))

    def add(self, x: Tensor, out: Tensor) -> None:
        """Add the product to `out`."""
        self.matrix.add(x, out)
        out.add_(self._product(x))

    def _product(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x.to(self.a.dtype), self.a), self.b)


class QuantizedMatrix:
    """Reads weights of 8 or 4 bits where the decoder has them, those of several products in turn.

    Args:
        linears: that take the same input; their outputs lie side by side.
    """

    def __init__(self, linears: Sequence[QuantizedLinear]) -> None:
        self.weights = [linear.weight for linear in linears]
        biases = [linear.bias for linear in linears if linear.bias is not None]
        self.bias = torch.cat(biases) if biases else None

    def write(self, x: Tensor, out: Tensor) -> None:
        """Write the product into `out`."""
        made = quantized_product(x, self.weights)
        if self.bias is None:
            out.copy_(made)
        else:
            torch.add(made, self.bias, out=out)

    def add(self, x: Tensor, out: Tensor) -> None:
        """Add the product to `out`."""
        out.add_(quantized_product(x, self.weights))


@dataclass(slots=True)
class LayerMatrices:
    """The weights of a layer."""

    norm: Tensor  # (D,)
    qkv: Matrix  # D to (H + 2 G) K
    out: Matrix  # H K to D
    mlp_norm: Tensor  # (D,)
    gate_up: Matrix  # D to 2 M
    down: Matrix  # M to D


class StepMatrices:
    """The weights of a decoder for its steps; made once, before any number of answers.

    Halved weights and those of an adapter are copies: after training, make them anew.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        make = HalvedMatrix if can_halve(decoder) else OwnMatrix
        self.layers: list[LayerMatrices] = []
        for module in decoder.layers:
            layer = cast(Layer, module)
            attention, mlp = layer.attention, layer.mlp
            self.layers.append(
                LayerMatrices(
                    layer.input_norm.weight,
                    _matrix(make, attention.q_proj, attention.k_proj, attention.v_proj),
                    _matrix(make, attention.o_proj),
                    layer.post_attention_norm.weight,
                    _matrix(make, mlp.gate_proj, mlp.up_proj),
                    _matrix(make, mlp.down_proj),
                )
            )
        self.head = _matrix(make, decoder.lm_head)


def _matrix(make: Callable[[Tensor, Tensor | None], Matrix], *linears: nn.Module) -> Matrix:
    """Return what layers that read the same input do as one."""
    if isinstance(linears[0], QuantizedLinear):
        return QuantizedMatrix(cast(Sequence[QuantizedLinear], linears))
    plain = cast(Sequence[nn.Linear], linears)
    bias = None if plain[0].bias is None else _join([linear.bias for linear in plain])
    matrix = make(_join([linear.weight for linear in plain]), bias)
    a, b = zip(*map(low_rank, plain), strict=True)
    if not sum(map(len, a)):
        return matrix
    return AdaptedMatrix(matrix, torch.cat(a), torch.block_diag(*b))


def can_halve(decoder: Decoder) -> bool:
    """Whether this CPU multiplies fp32 by fp16, and the weights are few and lose nothing by it."""
    matrices = ((name, p) for name, p in decoder.named_parameters() if p.ndim == 2)
    weights = [p for name, p in matrices if not is_lora(name)]
    is_smaller = any(quantized_layers(decoder))
    return (
        all(w.device.type == "cpu" and w.dtype == torch.float32 for w in weights)
        and "fbgemm" in torch.backends.quantized.supported_engines
        and hasattr(torch.ops.quantized, "linear_dynamic_fp16")
        and sum(w.nbytes for w in weights)
        <= (MAX_HALVED_HEAD_BYTES if is_smaller else MAX_HALVED_BYTES)
        and all(((w - w.half()).abs() <= ROUNDING).all() for w in weights)
    )


@torch.inference_mode(False)
@torch.no_grad()
def _join(parts: list[Tensor]) -> Tensor:
    """Return the parameters stacked; they become views of the result, so that no weight is held
    twice and a later change of one is seen in both."""
    first = parts[0]
    is_joined = all(
        right.untyped_storage().data_ptr() == left.untyped_storage().data_ptr()
        and right.data_ptr() == left.data_ptr() + left.nbytes
        for left, right in pairwise(parts)
    )
    sizes = [len(part) for part in parts]
    if is_joined:
        return first.detach().as_strided((sum(sizes), *first.shape[1:]), first.stride())
    joined = torch.cat(parts)
    for part, view in zip(parts, joined.split(sizes), strict=True):
        part.data = view
    return joined
