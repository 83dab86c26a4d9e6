"""Rotary positions, plain and scaled.

Source: Su et al. 2021, "RoFormer"; the Llama 3.1 release for its frequency bands.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lapilli.model.spec import DecoderSpec


def rotary_frequencies(spec: DecoderSpec, device: torch.device) -> Tensor:
    """Return the angle per position of each pair of channels: (K / 2,) fp32."""
    channels = torch.arange(0, spec.head_dim, 2, dtype=torch.float32, device=device)
    exponents = channels / spec.head_dim
    frequencies = 1.0 / spec.rope_theta**exponents
    if spec.rope_scaling is None:
        return frequencies
    if spec.rope_scaling["rope_type"] == "linear":
        return frequencies / float(spec.rope_scaling["factor"])
    if spec.rope_scaling["rope_type"] == "llama3":
        return _llama3_bands(frequencies, spec.rope_scaling)
    return frequencies


def _llama3_bands(frequencies: Tensor, scaling: dict[str, float | str]) -> Tensor:
    """Slow waves are stretched by `factor`, fast ones kept, those between blended."""
    factor = float(scaling["factor"])
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    original = float(scaling["original_max_position_embeddings"])
    wavelengths = 2 * math.pi / frequencies
    blend = ((original / wavelengths - low) / (high - low)).clamp(0, 1)
    return frequencies / factor * (1 - blend) + frequencies * blend


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turn each pair of channels (k, k + K / 2) by its angle.

    Args:
        x: (B, H, T, K).
        cosines, sines: (B, 1, T, K / 2) fp32, rounded to the type of `x` before use.
    """
    cosines, sines = cosines.to(x.dtype), sines.to(x.dtype)
    first, second = x.chunk(2, -1)
    return torch.cat([first * cosines - second * sines, second * cosines + first * sines], -1)
