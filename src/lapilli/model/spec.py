"""The saved architecture: numbers that say how a model is built, and nothing else."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from lapilli.errors import ConfigError
from lapilli.tiling import Tiling

Activation = Literal["gelu", "gelu_tanh", "quick_gelu"]
Projector = Literal["linear", "mlp2x_gelu"]

ROPE_SCALINGS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
}
"""Types of rotary positions, and the numbers that each needs."""


def _expect_positive(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ConfigError(f"{name} is {count}; give 1 or more")


def _expect_above_zero(**numbers: object) -> None:
    for name, number in numbers.items():
        if not isinstance(number, int | float) or not 0 < number < math.inf:
            raise ConfigError(f"{name} is {number!r}; give a number above 0")


@dataclass(frozen=True, slots=True)
class VisionSpec:
    """A vision transformer; CLIP and SigLIP towers differ only in these values.

    Attributes:
        image_size: side of the square input, in pixels.
        patch_size: side of a patch, in pixels.
        has_class_token: a learned token stands before the patches (CLIP).
        has_pre_norm: layer norm after the embeddings (CLIP).
        has_patch_bias: the patch embedding has a bias (SigLIP).
        feature_layer: hidden state that is handed on, counted as `transformers` counts
            (0 the embeddings, -1 the last layer, -2 the one before).
    """

    image_size: int = 336
    patch_size: int = 14
    width: int = 1024
    num_layers: int = 24
    num_heads: int = 16
    mlp_width: int = 4096
    activation: Activation = "quick_gelu"
    norm_eps: float = 1e-5
    has_class_token: bool = True
    has_pre_norm: bool = True
    has_patch_bias: bool = False
    feature_layer: int = -2

    def __post_init__(self) -> None:
        _expect_positive(
            patch_size=self.patch_size,
            width=self.width,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            mlp_width=self.mlp_width,
        )
        _expect_above_zero(norm_eps=self.norm_eps)
        if self.image_size < self.patch_size:
            raise ConfigError(f"image_size {self.image_size} is below patch_size {self.patch_size}")
        if self.width % self.num_heads:
            raise ConfigError(f"width {self.width} does not divide into {self.num_heads} heads")
        if not 0 <= self.num_feature_layers <= self.num_layers:
            raise ConfigError(
                f"feature_layer {self.feature_layer} is none of {self.num_layers} layers"
            )

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size

    @property
    def num_features(self) -> int:
        """Features of one picture that the language model sees."""
        return self.grid**2

    @property
    def num_feature_layers(self) -> int:
        """Layers that run to make the features."""
        last = self.feature_layer
        return last if last >= 0 else self.num_layers + 1 + last


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """A Llama-family decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

    Attributes:
        has_qkv_bias: biases on query, key and value (Qwen2).
        is_tied: the output head is the embedding table.
        sliding_window: positions a token sees, None for all (Mistral).
        rope_scaling: `rope_type`, a name in `ROPE_SCALINGS`, and its numbers; None for plain.
        max_positions: context length the model was trained for.
    """

    vocab_size: int = 32064
    width: int = 4096
    num_layers: int = 32
    num_heads: int = 32
    num_kv_heads: int = 32
    head_dim: int = 128
    mlp_width: int = 11008
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: dict[str, float | str] | None = None
    has_qkv_bias: bool = False
    is_tied: bool = False
    sliding_window: int | None = None
    max_positions: int = 4096

    def __post_init__(self) -> None:
        _expect_positive(
            vocab_size=self.vocab_size,
            width=self.width,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            mlp_width=self.mlp_width,
            max_positions=self.max_positions,
        )
        _expect_above_zero(norm_eps=self.norm_eps, rope_theta=self.rope_theta)
        if self.sliding_window is not None:
            _expect_positive(sliding_window=self.sliding_window)
        if self.rope_scaling is not None:
            _check_rope(self.rope_scaling)
        if self.head_dim % 2:
            raise ConfigError(
                f"head_dim {self.head_dim} is odd; rotary positions turn pairs of channels"
            )
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"{self.num_heads} heads do not share {self.num_kv_heads} key-value heads"
            )


def _check_rope(scaling: dict[str, float | str]) -> None:
    kind = scaling.get("rope_type")
    if kind not in ROPE_SCALINGS:
        known = ", ".join(ROPE_SCALINGS)
        raise ConfigError(f"rope_scaling.rope_type is {kind!r}; known: {known}")
    _expect_above_zero(
        **{f"rope_scaling.{name}": scaling.get(name) for name in ROPE_SCALINGS[kind]}
    )


@dataclass(frozen=True, slots=True)
class LlavaSpec:
    """A vision tower, a projector and a decoder.

    Attributes:
        projector: a name in `lapilli.model.projectors.PROJECTORS`.
        image_token_id: the id that keeps a feature's place in a prompt; never embedded.
        tiling: how pictures are cut (LLaVA-NeXT, LLaVA-OneVision); None to see them whole alone.
    """

    vision: VisionSpec = VisionSpec()
    decoder: DecoderSpec = DecoderSpec()
    projector: Projector = "mlp2x_gelu"
    image_token_id: int = 32000
    tiling: Tiling | None = None

    def __post_init__(self) -> None:
        if self.tiling is None:
            return
        tile = self.tiling.tile_px, self.tiling.tile_features
        if tile != (self.vision.image_size, self.vision.grid):
            raise ConfigError(
                f"tiles of {tile[0]} pixels and {tile[1]} features a side; the vision tower takes "
                f"{self.vision.image_size} and makes {self.vision.grid}"
            )
