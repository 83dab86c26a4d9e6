"""The saved architecture: numbers that say how a model is built, and nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

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

Windows = Literal["none", "all", "layers", "places"]

FOREIGN_DECODERS: dict[str, Windows] = {
    "arcee": "none",
    "cohere": "none",
    "cohere2": "layers",
    "ernie4_5": "none",
    "exaone4": "layers",
    "falcon": "none",
    "gemma": "none",
    "gemma2": "layers",
    "gemma3_text": "layers",
    "glm": "none",
    "glm4": "none",
    "gpt2": "none",
    "gpt_bigcode": "none",
    "gpt_neox": "none",
    "granite": "none",
    "helium": "none",
    "hunyuan_v1_dense": "none",
    "mpt": "places",
    "nemotron": "none",
    "olmo": "none",
    "olmo2": "none",
    "olmo3": "layers",
    "persimmon": "none",
    "phi": "none",
    "phi3": "all",
    "qwen3": "layers",
    "seed_oss": "none",
    "smollm3": "layers",
    "stablelm": "none",
    "starcoder2": "all",
}
"""Decoders that `transformers` runs for us, and where their attention has a sliding window: in
none or all of the layers, in those that `layer_types` names; or no window, but distances counted in
places of the row (ALiBi). They take a mask from outside and positions, and keep keys and values;
recurrent decoders do neither. The tests hold each to that."""

_MAX_CONFIG = 2**16
"""Characters of a foreign decoder's configuration as JSON; true ones have some thousand."""
_MAX_INTEGER = 2**31 - 1


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
class ForeignSpec:
    """A decoder outside that family, which `transformers` builds and runs.

    Attributes:
        config: its configuration there, as plain values of JSON; `model_type` is a name in
            `FOREIGN_DECODERS`.
        vocab_size, width, num_layers, max_positions, is_tied: what it says of them, defaults
            included; as in `DecoderSpec`.
    """

    config: dict[str, Any]
    vocab_size: int
    width: int
    num_layers: int
    max_positions: int
    is_tied: bool

    def __post_init__(self) -> None:
        _expect_positive(
            vocab_size=self.vocab_size,
            width=self.width,
            num_layers=self.num_layers,
            max_positions=self.max_positions,
        )
        if self.model_type not in FOREIGN_DECODERS:
            known = ", ".join(FOREIGN_DECODERS)
            raise ConfigError(f"config.model_type is {self.model_type!r}; known: {known}")
        try:
            text = json.dumps(self.config, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigError(f"config is no plain JSON ({error})") from error
        if len(text) > _MAX_CONFIG:
            raise ConfigError(f"config has {len(text)} characters; supported is {_MAX_CONFIG}")
        for key, value in _entries(self.config):
            if key == "auto_map":
                raise ConfigError("config.auto_map names code to run; leave it out")
            if isinstance(value, int) and abs(value) > _MAX_INTEGER:
                raise ConfigError(f"config.{key} is {value}; supported is up to {_MAX_INTEGER}")

    @property
    def model_type(self) -> str:
        """Its kind, in the words of `transformers`."""
        return str(self.config.get("model_type"))


def _entries(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """All values, however deep, each with the key that it stands under."""
    yield key, value
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _entries(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _entries(inner, key)


@dataclass(frozen=True, slots=True)
class LlavaSpec:
    """A vision tower, a projector and a decoder.

    Attributes:
        projector: a name in `lapilli.model.projectors.PROJECTORS`.
        image_token_id: the id that keeps a feature's place in a prompt; never embedded.
        tiling: how pictures are cut (LLaVA-NeXT, LLaVA-OneVision); None to see them whole alone.
    """

    vision: VisionSpec = VisionSpec()
    decoder: DecoderSpec | ForeignSpec = DecoderSpec()
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
