"""The architecture in a Hugging Face `config.json`, read and written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lapilli.checkpoints.hf_tiling import tiling_from_hf, tiling_to_hf
from lapilli.checkpoints.sections import Section, expect
from lapilli.errors import CheckpointError
from lapilli.model.spec import (
    FOREIGN_DECODERS,
    ROPE_SCALINGS,
    Activation,
    DecoderSpec,
    ForeignSpec,
    LlavaSpec,
    VisionSpec,
)

ACTIVATIONS: dict[str, Activation] = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
}
"""A vision tower's activations by their names there, to ours."""

# Configurations are saved without the values that equal their class's defaults.
_VISION_SHARED: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
}
_VISION_DEFAULTS: dict[str, dict[str, Any]] = {
    "clip_vision_model": _VISION_SHARED
    | {"patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
    "siglip_vision_model": _VISION_SHARED
    | {"patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
}
_TEXT_SHARED: dict[str, Any] = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "sliding_window": None,
}
_TEXT_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": _TEXT_SHARED
    | {"vocab_size": 32000, "intermediate_size": 11008, "max_position_embeddings": 2048},
    "mistral": _TEXT_SHARED
    | {
        "vocab_size": 32000,
        "intermediate_size": 14336,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
    "qwen2": _TEXT_SHARED
    | {
        "vocab_size": 151936,
        "intermediate_size": 22016,
        "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
    **{name: {} for name in FOREIGN_DECODERS},  # those are for `transformers` to fill in
}
_LLAVA_SHARED: dict[str, Any] = {
    "image_token_index": 32000,
    "projector_hidden_act": "gelu",
    "multimodal_projector_bias": True,
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "tie_word_embeddings": False,
}
_LLAVA_DEFAULTS: dict[str, dict[str, Any]] = {
    "llava": _LLAVA_SHARED,
    "llava_next": _LLAVA_SHARED,
    "llava_onevision": _LLAVA_SHARED
    | {
        "image_token_index": 151646,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    },
}
_USUAL_PARTS = {
    "llava": ("clip_vision_model", "llama"),
    "llava_next": ("clip_vision_model", "llama"),
    "llava_onevision": ("siglip_vision_model", "qwen2"),
}
"""Tower and decoder of sections that do not say what they are."""


def spec_from_hf(config: Mapping[str, Any], where: str = "config.json") -> LlavaSpec:
    """Return the architecture of LLaVA-1.5, LLaVA-NeXT or LLaVA-OneVision.

    Args:
        config: what `config.json` holds; keys left out have `transformers`' defaults.
        where: the file, for messages.

    Raises:
        CheckpointError: a key is missing, of the wrong type, or asks for what is not supported.
    """
    top = Section(config, {}, where)
    kind = top.choose_defaults(_LLAVA_DEFAULTS, "")
    usual_tower, usual_decoder = _USUAL_PARTS[kind]
    vision, text = top.section("vision_config"), top.section("text_config")
    vision_type = vision.choose_defaults(_VISION_DEFAULTS, usual_tower)
    text_type = text.choose_defaults(_TEXT_DEFAULTS, usual_decoder)
    is_clip = vision_type == "clip_vision_model"
    top.expect("quantization_config", None)
    top.expect("projector_hidden_act", "gelu")
    top.expect("multimodal_projector_bias", True)
    # The first token is the class token in CLIP; in SigLIP it is a patch like any other.
    top.expect("vision_feature_select_strategy", "default" if is_clip else "full")
    tower = vision.build(_vision, is_clip, top.integer("vision_feature_layer"))
    return LlavaSpec(
        tower,
        text.build(_decoder, text_type, bool(top["tie_word_embeddings"])),
        "mlp2x_gelu",
        _image_token_id(top),
        tiling_from_hf(config, tower, where),
    )


def decoder_type(config: Mapping[str, Any]) -> str:
    """Return the `model_type` of the decoder in a configuration that `spec_from_hf` reads."""
    usual_decoder = _USUAL_PARTS[config["model_type"]][1]
    return str(config["text_config"].get("model_type", usual_decoder))


def vision_from_hf(config: Mapping[str, Any], feature_layer: int, where: str) -> VisionSpec:
    """Return the architecture of a CLIP or SigLIP tower out of its own configuration.

    Args and Raises: as in `spec_from_hf`.
    """
    vision = Section(config, {}, where)
    is_clip = vision.choose_defaults(_VISION_DEFAULTS, "") == "clip_vision_model"
    return vision.build(_vision, is_clip, feature_layer)


def decoder_from_hf(config: Mapping[str, Any], where: str) -> DecoderSpec:
    """Return the architecture of a language model out of its own configuration.

    Args and Raises: as in `spec_from_hf`; outside the Llama family, none is read from elsewhere
    than a folder of Hugging Face's LLaVA.
    """
    text = Section(config, {}, where)
    kind = text.choose_defaults(_TEXT_DEFAULTS, "")
    text.expect("quantization_config", None)
    decoder = text.build(_decoder, kind, False)
    if isinstance(decoder, ForeignSpec):
        raise CheckpointError(
            f"{where}: model_type {kind!r} is read from a LLaVA in Hugging Face's layout alone"
        )
    return decoder


def spec_to_hf(spec: LlavaSpec) -> dict[str, Any]:
    """Return what `config.json` says of the architecture, in words that `transformers` 4 and 5
    both read.

    Raises:
        CheckpointError: Hugging Face's models have no form for it.
    """
    if spec.projector != "mlp2x_gelu":
        raise _no_form(f"projector {spec.projector!r}", "mlp2x_gelu")
    if spec.image_token_id >= spec.decoder.vocab_size:
        raise _no_form(
            f"image token {spec.image_token_id} beyond {spec.decoder.vocab_size} embeddings",
            "an id below vocab_size",
        )
    vision = vision_to_hf(spec.vision)
    return tiling_to_hf(spec.tiling) | {
        "image_token_index": spec.image_token_id,
        "image_seq_length": spec.vision.num_features,
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "vision_feature_layer": spec.vision.feature_layer,
        "vision_feature_select_strategy": "default" if spec.vision.has_class_token else "full",
        "tie_word_embeddings": spec.decoder.is_tied,
        "vision_config": vision,
        "text_config": decoder_to_hf(spec.decoder)
        if isinstance(spec.decoder, DecoderSpec)
        else spec.decoder.config,
    }


# Reading


def _vision(vision: Section, is_clip: bool, feature_layer: int) -> VisionSpec:
    vision.expect("num_channels", 3)
    vision.expect("hidden_act", *ACTIVATIONS)
    return VisionSpec(
        image_size=vision.count("image_size"),
        patch_size=vision.count("patch_size"),
        width=vision.count("hidden_size"),
        num_layers=vision.count("num_hidden_layers"),
        num_heads=vision.count("num_attention_heads"),
        mlp_width=vision.count("intermediate_size"),
        activation=ACTIVATIONS[vision["hidden_act"]],
        norm_eps=vision.number("layer_norm_eps"),
        has_class_token=is_clip,
        has_pre_norm=is_clip,
        has_patch_bias=not is_clip,
        feature_layer=feature_layer,
    )


def _decoder(text: Section, kind: str, is_tied_above: bool) -> DecoderSpec | ForeignSpec:
    if kind in FOREIGN_DECODERS:
        tie = {"tie_word_embeddings": True} if is_tied_above else {}
        from lapilli.model.foreign import foreign_spec  # loads torch; a catalogue does without

        return foreign_spec({**text.values, **tie})
    text.expect("hidden_act", "silu")
    if kind == "llama":
        text.expect("attention_bias", False)
        text.expect("mlp_bias", False)
    width, num_heads = text.count("hidden_size"), text.count("num_attention_heads")
    theta, scaling = _rope(text)
    return DecoderSpec(
        vocab_size=text.count("vocab_size"),
        width=width,
        num_layers=text.count("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=num_heads
        if text["num_key_value_heads"] is None
        else text.count("num_key_value_heads"),
        head_dim=width // num_heads if text["head_dim"] is None else text.count("head_dim"),
        mlp_width=text.count("intermediate_size"),
        norm_eps=text.number("rms_norm_eps"),
        rope_theta=theta,
        rope_scaling=scaling,
        has_qkv_bias=kind == "qwen2",
        is_tied=is_tied_above or bool(text["tie_word_embeddings"]),
        sliding_window=_sliding_window(text, kind),
        max_positions=text.count("max_position_embeddings"),
    )


def _rope(text: Section) -> tuple[float, dict[str, float | str] | None]:
    """Base and scaling; one table holds both since `transformers` 5."""
    key = "rope_parameters" if text.values.get("rope_parameters") else "rope_scaling"
    values = text.values.get(key) or {}
    if not isinstance(values, Mapping):
        raise CheckpointError(f"{text.where}: {text.path}{key} is {values!r}; give a table")
    table = Section(values, {"rope_theta": text["rope_theta"]}, text.where, f"{text.path}{key}.")
    kind = values.get("rope_type", values.get("type", "default"))
    expect(f"{table.path}rope_type", kind, tuple(ROPE_SCALINGS), text.where)
    theta = table.number("rope_theta")
    if kind == "default":
        return theta, None
    numbers = {name: table.number(name) for name in ROPE_SCALINGS[kind]}
    return theta, {"rope_type": kind, **numbers}


def _sliding_window(text: Section, kind: str) -> int | None:
    if kind == "llama" or text["sliding_window"] is None:
        return None
    if kind == "qwen2":
        text.expect("use_sliding_window", True, False)
        if not text["use_sliding_window"]:
            return None
        # Our window holds for all layers or none.
        num_layers, first = text.count("num_hidden_layers"), text.integer("max_window_layers")
        if first >= num_layers:
            return None
        text.expect("max_window_layers", 0)
    return text.count("sliding_window")


def _image_token_id(top: Section) -> int:
    key = "image_token_id" if "image_token_id" in top.values else "image_token_index"
    number = top.integer(key)
    if number < 0:
        raise CheckpointError(f"{top.where}: {key} is {number}; give 0 or more")
    return number


# Writing


def vision_to_hf(spec: VisionSpec) -> dict[str, Any]:
    """Return what a configuration says of a tower.

    Raises:
        CheckpointError: Hugging Face's models have no form for it.
    """
    parts = (spec.has_class_token, spec.has_pre_norm, not spec.has_patch_bias)
    if any(parts) and not all(parts):
        raise _no_form(
            "a vision tower between CLIP and SigLIP",
            "class token and pre-norm without patch bias (CLIP), or the reverse (SigLIP)",
        )
    names = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
    config: dict[str, Any] = {
        "model_type": "clip_vision_model" if all(parts) else "siglip_vision_model",
        "hidden_size": spec.width,
        "intermediate_size": spec.mlp_width,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_heads,
        "num_channels": 3,
        "image_size": spec.image_size,
        "patch_size": spec.patch_size,
        "hidden_act": names[spec.activation],
        "layer_norm_eps": spec.norm_eps,
    }
    if all(parts):
        return config
    return config | {"vision_use_head": False}


def decoder_to_hf(spec: DecoderSpec) -> dict[str, Any]:
    """Return what a configuration says of a language model."""
    config: dict[str, Any] = {
        "model_type": "llama",
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.width,
        "intermediate_size": spec.mlp_width,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_heads,
        "num_key_value_heads": spec.num_kv_heads,
        "head_dim": spec.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": spec.max_positions,
        "rms_norm_eps": spec.norm_eps,
        "rope_theta": spec.rope_theta,
        "tie_word_embeddings": spec.is_tied,
    }
    if spec.rope_scaling is not None:
        config["rope_scaling"] = spec.rope_scaling
    if spec.has_qkv_bias:
        config["model_type"] = "qwen2"
        config["use_sliding_window"] = spec.sliding_window is not None
        if spec.sliding_window is not None:
            config |= {"sliding_window": spec.sliding_window, "max_window_layers": 0}
    elif spec.sliding_window is not None:
        config |= {"model_type": "mistral", "sliding_window": spec.sliding_window}
    return config


def _no_form(what: str, remedy: str) -> CheckpointError:
    return CheckpointError(f"{what}: Hugging Face has no form for it; use {remedy}")
