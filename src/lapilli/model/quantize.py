"""Weights of 8 or 4 bits for a decoder's layers; embeddings, head, projector and tower stay.

Only weights are rounded. What they are multiplied with keeps 13 bits beside int8 and bf16's 8 bits
beside int4, whatever type the model computes in, and a row's product does not depend on others.
"""

# B rows, I inputs, O outputs, S groups of inputs that share a scale

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lapilli.errors import ConfigError
from lapilli.model.decoder import Decoder

Bits = Literal["int8", "int4"]
GROUP_INPUTS = 32
"""Inputs of an output that share a scale and a zero in int4."""
PACKED_OUTPUTS = 16
"""What outputs come in, in torch's packed int4."""

_DIGIT = 63
"""The largest digit of an activation: 7 bits with its sign, so that no CPU's sums of two products
overflow their 16 bits."""
_FINE = 2 * _DIGIT


def int8_codes(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nearest of 256 steps for each weight, even around 0.

    Args:
        weight: (O, I).

    Returns:
        (O, I) int8, and the (O, 1) fp32 steps of the outputs: weights are about their product.
    """
    weight = weight.float()
    scale = (weight.abs().amax(1, keepdim=True) / 127.5).clamp(min=torch.finfo(torch.float32).eps)
    return (weight * (1 / scale)).round().clamp(-128, 127).to(torch.int8), scale


def int4_codes(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the nearest of 16 steps for each weight, from the least of its group to the largest.

    Steps and zeros are rounded to bf16, which the product reads, before codes are chosen.

    Args:
        weight: (O, I); `GROUP_INPUTS` divides I.

    Returns:
        (O, S, I / S) uint8; (O, S, 1) bf16 steps; (O, S, 1) bf16 zeros, the weight of code 8.
    """
    groups = weight.float().unflatten(1, (-1, GROUP_INPUTS))
    least, largest = groups.aminmax(dim=-1, keepdim=True)
    scale = ((largest - least) / 15).clamp(min=1e-6)
    zero = (least + 8 * scale).bfloat16()
    scale = scale.bfloat16()
    codes = ((groups - zero.float()) / scale.float()).round() + 8
    return codes.clamp(0, 15).to(torch.uint8), scale, zero


class Int8Packed:
    """Weights of 8 bits for a CPU, in the library FBGEMM.

    It multiplies integers alone. A row of activations is told by two digits of 7 bits, coarse and
    fine, as two rows: the product is then as exact as 13 bits can tell, and the same in any batch.

    Args:
        weight: (O, I), of any floating-point type.
    """

    def __init__(self, weight: Tensor) -> None:
        codes, scale = int8_codes(weight)
        self.num_bytes = codes.nbytes + scale.nbytes
        zeros = torch.zeros(len(codes), dtype=torch.long)
        with warnings.catch_warnings():
            # Such tensors are to leave torch some day; `has_packed_int8` will say so then.
            warnings.filterwarnings("ignore", message="torch.quantize_per_tensor")
            steps = torch._make_per_channel_quantized_tensor(codes, scale[:, 0].double(), zeros, 0)
        self.packed: Any = torch.ops.quantized.linear_prepack(steps, None)

    @staticmethod
    def product(x: Tensor, parts: Sequence[Int8Packed]) -> Tensor:
        """Return (B, I) times all weights, side by side, (B, O of all) fp32."""
        rows, x = len(x), x.float()
        # Not 0, by which nothing can be divided.
        largest = torch.linalg.vector_norm(x, torch.inf, -1, keepdim=True)
        largest.clamp_(min=torch.finfo(torch.float32).tiny * _DIGIT)
        digits = largest.new_empty(2 * rows, x.shape[1])
        coarse, fine = digits[:rows], digits[rows:]
        scaled = x * (_DIGIT / largest)
        torch.round(scaled, out=coarse)
        torch.sub(scaled, coarse, out=fine)
        fine.mul_(_FINE)
        # The coarse digits are whole, so that no half is rounded in two ways: fine digits are what
        # torch's rounding left.
        multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default
        made = _beside([multiply(digits, 1.0, _DIGIT + 1, part.packed) for part in parts])
        return torch.add(made[:rows], made[rows:], alpha=1 / _FINE).mul_(largest.div_(_DIGIT))


class Int4Packed:
    """Weights of 4 bits for a CPU, as torch's own product reads them; it computes in bf16.

    Args:
        weight: (O, I), of any floating-point type.
    """

    def __init__(self, weight: Tensor) -> None:
        codes, scale, zero = int4_codes(weight)
        # The last argument means nothing on a CPU.
        self.packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(
            codes.flatten(1).to(torch.int32), 1
        )
        self.scales = torch.cat([scale, zero], -1).transpose(0, 1).contiguous()  # (S, O, 2)
        self.num_bytes = self.packed.nbytes + self.scales.nbytes

    @staticmethod
    def product(x: Tensor, parts: Sequence[Int4Packed]) -> Tensor:
        """Return (B, I) times all weights, side by side, (B, O of all) bf16."""
        x = x.bfloat16()
        multiply = torch.ops.aten._weight_int4pack_mm_for_cpu.default
        return _beside([multiply(x, part.packed, GROUP_INPUTS, part.scales) for part in parts])


class Int8Plain:
    """Weights of 8 bits for any device, widened for every product: they save memory, not time.

    Args:
        weight: (O, I), of any floating-point type.
    """

    def __init__(self, weight: Tensor) -> None:
        self.codes, self.scale = int8_codes(weight)
        self.num_bytes = self.codes.nbytes + self.scale.nbytes

    def widened(self, dtype: torch.dtype) -> Tensor:
        """Return (O, I) numbers of that type."""
        return (self.codes * self.scale).to(dtype)

    @staticmethod
    def product(x: Tensor, parts: Sequence[Int8Plain | Int4Plain]) -> Tensor:
        """Return (B, I) times all weights, side by side, (B, O of all)."""
        return _beside([F.linear(x, part.widened(x.dtype)) for part in parts])


class Int4Plain:
    """Weights of 4 bits for any device, widened for every product: they save memory, not time.

    Args:
        weight: (O, I), of any floating-point type.
    """

    def __init__(self, weight: Tensor) -> None:
        codes, self.scale, self.zero = int4_codes(weight)
        self.pairs = codes[..., ::2] | codes[..., 1::2] << 4  # (O, S, I / S / 2)
        self.num_bytes = self.pairs.nbytes + self.scale.nbytes + self.zero.nbytes

    def widened(self, dtype: torch.dtype) -> Tensor:
        """Return (O, I) numbers of that type."""
        codes = torch.stack([self.pairs & 15, self.pairs >> 4], -1).flatten(-2)
        return ((codes.float() - 8) * self.scale + self.zero).flatten(1).to(dtype)

    product = staticmethod(Int8Plain.product)


Weight = Int8Packed | Int4Packed | Int8Plain | Int4Plain


class QuantizedLinear(nn.Module):
    """Stands for an `nn.Linear` at inference, on the device on which it was made."""

    def __init__(self, weight: Weight, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias

    @classmethod
    def of(cls, linear: nn.Linear, bits: Bits, device: torch.device) -> Self:
        """Return what stands for `linear` on a device."""
        weight = linear.weight.detach().to(device)
        bias = None if linear.bias is None else linear.bias.detach().to(device, torch.float32)
        return cls(_kind(bits, device)(weight), bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) to (..., O), in the type of `x`."""
        made = quantized_product(x.flatten(0, -2), [self.weight])
        if self.bias is not None:
            made = made + self.bias
        return made.to(x.dtype).unflatten(0, x.shape[:-1])


def quantized_product(x: Tensor, weights: Sequence[Any]) -> Tensor:
    """Return (B, I) times weights of one kind, side by side, in a type of theirs."""
    return weights[0].product(x, weights)


def quantize(decoder: Decoder, bits: str, device: torch.device) -> None:
    """Replace the matrices of a decoder's layers, one after the other; the rest stays as it is.

    Args:
        device: where the decoder is to work.

    Raises:
        ConfigError: there is no such kind, or the widths do not suit it.
    """
    kind = check_bits(bits)
    if kind == "int4":
        _check_widths(decoder, device)
    for parent in list(decoder.layers.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear):
                setattr(parent, name, QuantizedLinear.of(child, kind, device))


def check_bits(name: str) -> Bits:
    """Return `name` if it is a kind of smaller weights.

    Raises:
        ConfigError: it is none.
    """
    for bits in get_args(Bits):
        if name == bits:
            return bits
    raise ConfigError(f"quantize is {name!r}; give {' or '.join(get_args(Bits))}, or leave it out")


def quantized_layers(module: nn.Module) -> Iterator[QuantizedLinear]:
    """Yield what was quantized in a model."""
    yield from (part for part in module.modules() if isinstance(part, QuantizedLinear))


def has_packed_int8() -> bool:
    """Whether this build of torch multiplies packed weights of 8 bits on this CPU."""
    return (
        "fbgemm" in torch.backends.quantized.supported_engines
        and hasattr(torch, "_make_per_channel_quantized_tensor")
        and hasattr(torch.ops.quantized, "linear_with_input_q_dq_qweight_dq_output_fp32")
    )


def _kind(bits: Bits, device: torch.device) -> type[Weight]:
    if device.type != "cpu":
        return Int8Plain if bits == "int8" else Int4Plain
    if bits == "int4":
        return Int4Packed
    return Int8Packed if has_packed_int8() else Int8Plain


def _check_widths(decoder: Decoder, device: torch.device) -> None:
    for name, linear in decoder.layers.named_modules():
        if not isinstance(linear, nn.Linear):
            continue
        unit = PACKED_OUTPUTS if device.type == "cpu" else 1
        if linear.in_features % GROUP_INPUTS or linear.out_features % unit:
            raise ConfigError(
                f"int4: layers.{name} takes {linear.in_features} to {linear.out_features}; inputs "
                f"must come in groups of {GROUP_INPUTS}, outputs of {unit}. Use int8"
            )


def _beside(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)
