"""The architecture in `config.json`: read, written, and refused by the key at fault."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from lapilli.checkpoints.hf_spec import spec_from_hf, spec_to_hf
from lapilli.errors import CheckpointError
from lapilli.model.spec import LlavaSpec, VisionSpec
from lapilli.tiling import Tiling

# As the checkpoint of LLaVA-1.5-7B in this layout says it, defaults left out.
LLAVA_7B: dict[str, Any] = {
    "architectures": ["LlavaForConditionalGeneration"],
    "image_token_index": 32000,
    "model_type": "llava",
    "projector_hidden_act": "gelu",
    "text_config": {
        "model_type": "llama",
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "vocab_size": 32064,
    },
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
    },
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
}


# As that of LLaVA-OneVision-0.5B says it.
ONEVISION: dict[str, Any] = {
    "architectures": ["LlavaOnevisionForConditionalGeneration"],
    "image_grid_pinpoints": [[384 * i, 384 * j] for i in range(1, 7) for j in range(1, 7)],
    "image_token_index": 151646,
    "model_type": "llava_onevision",
    "projector_hidden_act": "gelu",
    "text_config": {
        "model_type": "qwen2",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "max_window_layers": 24,
        "num_attention_heads": 14,
        "num_hidden_layers": 24,
        "num_key_value_heads": 2,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
        "vocab_size": 152000,
    },
    "tie_word_embeddings": False,
    "use_image_newline_parameter": True,
    "video_token_index": 151647,
    "vision_aspect_ratio": "anyres_max_9",
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "image_size": 384,
        "intermediate_size": 4304,
        "num_attention_heads": 16,
        "num_hidden_layers": 26,
        "patch_size": 14,
        "vision_use_head": False,
    },
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "full",
}


def changed(key: str, value: Any) -> dict[str, Any]:
    """The configuration with another value, in one of its sections where the key has a point."""
    section, _, last = key.rpartition(".")
    if not section:
        return LLAVA_7B | {key: value}
    return LLAVA_7B | {section: LLAVA_7B[section] | {last: value}}


def test_llava_1_5_is_our_own_default() -> None:
    assert spec_from_hf(LLAVA_7B) == LlavaSpec()


def test_llava_next_is_llava_1_5_with_tiles() -> None:
    spec = spec_from_hf(LLAVA_7B | {"model_type": "llava_next"})
    grids = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
    assert spec == LlavaSpec(tiling=Tiling(336, 24, grids))


def test_onevision_is_read_with_and_without_its_defaults() -> None:
    spec = spec_from_hf(ONEVISION)
    assert spec.tiling is not None
    assert (spec.tiling.tile_features, spec.tiling.max_tiles) == (27, 9)
    assert not spec.tiling.tiles_several and len(spec.tiling.grids) == 36
    assert (spec.vision.num_feature_layers, spec.vision.num_features) == (26, 729)
    assert spec.decoder.is_tied and spec.decoder.has_qkv_bias
    sections = ("text_config", "vision_config", "model_type")
    short = {key: ONEVISION[key] for key in sections}
    for section in sections[:2]:
        short[section] = {k: v for k, v in short[section].items() if k != "model_type"}
    assert spec_from_hf(short) == spec
    assert spec_from_hf(ONEVISION | {"image_grid_pinpoints": None}) == spec


def test_an_architecture_comes_back_equal(spec: LlavaSpec) -> None:
    assert spec_from_hf(json.loads(json.dumps(spec_to_hf(spec)))) == spec


def test_rope_is_read_in_the_older_form_and_in_the_newer() -> None:
    scaling = {"rope_type": "linear", "factor": 4.0}
    older = {"rope_theta": 5e5, "rope_scaling": scaling}
    newer = {"rope_parameters": {"rope_theta": 5e5, **scaling}}
    specs = [
        spec_from_hf(LLAVA_7B | {"text_config": LLAVA_7B["text_config"] | form}).decoder
        for form in (older, newer)
    ]
    assert specs[0] == specs[1]
    assert (specs[0].rope_theta, specs[0].rope_scaling) == (5e5, scaling)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "llava_next_video"),
        ("model_type", None),
        ("auto_map", {"AutoModel": "code.Model"}),
        ("quantization_config", {"bits": 4}),
        ("projector_hidden_act", "relu"),
        ("multimodal_projector_bias", False),
        ("vision_feature_layer", [-2, -5]),
        ("vision_feature_select_strategy", "full"),
        ("vision_config", None),
        ("image_token_index", "32000"),
        ("image_token_index", -1),
        ("image_token_index", 10**30),
        ("vision_config.model_type", "vit"),
        ("vision_config.auto_map", {}),
        ("vision_config.hidden_act", "relu"),
        ("vision_config.num_channels", 1),
        ("vision_config.image_size", [336, 336]),
        ("text_config.model_type", "mamba"),
        ("text_config.auto_map", {}),
        ("text_config.hidden_act", "gelu"),
        ("text_config.attention_bias", True),
        ("text_config.mlp_bias", True),
        ("text_config.hidden_size", True),
        ("text_config.num_attention_heads", 0),
        ("text_config.rms_norm_eps", math.nan),
        ("text_config.rope_scaling", ["linear"]),
        ("text_config.rope_scaling", {"type": "linear"}),
        ("text_config.rope_scaling", {"type": "yarn", "factor": 2.0}),
        ("text_config.rope_parameters", {"rope_type": "dynamic", "factor": 2.0}),
    ],
)
def test_what_is_not_supported_is_refused_by_its_key(key: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=rf"^config\.json: .*\b{key.rpartition('.')[2]}\b"):
        spec_from_hf(changed(key, value))


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("vision_feature_layer", -26, "vision_config: feature_layer -26 is none of 24 layers"),
        (
            "vision_config.num_attention_heads",
            7,
            "vision_config: width 1024 does not divide into 7 heads",
        ),
        (
            "text_config.num_key_value_heads",
            5,
            "text_config: 32 heads do not share 5 key-value heads",
        ),
        ("text_config.head_dim", 7, "text_config: head_dim 7 is odd"),
    ],
)
def test_what_contradicts_itself_is_refused(key: str, value: Any, reason: str) -> None:
    with pytest.raises(CheckpointError, match=rf"^config\.json: {reason}"):
        spec_from_hf(changed(key, value))


def test_a_window_in_some_layers_alone_is_refused() -> None:
    text = {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 5}
    with pytest.raises(CheckpointError, match=r"text_config\.max_window_layers is 5"):
        spec_from_hf(LLAVA_7B | {"text_config": text})


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (LlavaSpec(projector="linear"), "projector 'linear'"),
        (LlavaSpec(image_token_id=32064), "image token 32064 beyond 32064 embeddings"),
        (LlavaSpec(VisionSpec(has_patch_bias=True)), "between CLIP and SigLIP"),
    ],
)
def test_what_has_no_form_there_is_refused(spec: LlavaSpec, reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        spec_to_hf(spec)
