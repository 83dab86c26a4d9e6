"""Ours against `transformers`: the same random weights, the same pictures and words."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    Qwen2Config,
    SiglipVisionConfig,
)

from lapilli.checkpoints.hf_names import to_ours
from lapilli.checkpoints.hf_spec import spec_from_hf
from lapilli.inputs import Inputs
from lapilli.model.llava import Llava

# B rows, T tokens, N pictures, P features of a picture, V vocabulary

IMAGE, NUM_FEATURES = 98, 16
TOLERANCE = 1e-4

VISION = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 30,  # two pixels at the edges fill no patch
    "patch_size": 7,
}
TEXT = {
    "vocab_size": 99,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
TOWERS: dict[str, tuple[type, dict[str, Any]]] = {
    "clip": (CLIPVisionConfig, {}),
    "siglip": (SiglipVisionConfig, {}),
}
DECODERS: dict[str, tuple[type, dict[str, Any]]] = {
    "llama": (LlamaConfig, {}),
    "mistral": (MistralConfig, {"sliding_window": 7}),
    "qwen2": (Qwen2Config, {}),
}


def reference(
    tower: str,
    decoder: str,
    *,
    vision: dict[str, Any] | None = None,
    text: dict[str, Any] | None = None,
    **top: Any,
) -> LlavaForConditionalGeneration:
    """A random model of theirs, whose norms and biases differ from the ones they start at."""
    vision_class, vision_extra = TOWERS[tower]
    text_class, text_extra = DECODERS[decoder]
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=vision_class(**VISION | vision_extra | (vision or {})),
        text_config=text_class(**TEXT | text_extra | (text or {})),
        image_token_index=IMAGE,
        vision_feature_select_strategy="default" if tower == "clip" else "full",
        **top,
    )
    model = LlavaForConditionalGeneration(config).eval()
    for parameter in model.parameters():
        # Large enough that attention is sharp and every weight matters to the logits.
        torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.12)
    return model


def ours(theirs: LlavaForConditionalGeneration) -> Llava:
    """Our model with their weights."""
    model = Llava(spec_from_hf(theirs.config.to_dict())).eval()
    renamed = {to_ours(name): value for name, value in theirs.state_dict().items()}
    renamed.pop(None, None)
    model.load_state_dict({str(name): value for name, value in renamed.items()})
    return model


def prompts() -> tuple[Inputs, Tensor]:
    """Two prompts, a picture in each, the second padded by 5; and which tokens are not padding."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(IMAGE, (2, 32), generator=generator)
    ids[0, 3 : 3 + NUM_FEATURES] = IMAGE
    ids[1, 9 : 9 + NUM_FEATURES] = IMAGE
    is_token = torch.ones(2, 32, dtype=torch.bool)
    is_token[1, :5] = False
    positions = is_token.cumsum(-1).sub(1).clamp(min=0)
    groups = is_token.long() - 1
    size = VISION["image_size"]
    pixels = torch.randn(2, 3, size, size, generator=generator)
    return Inputs(ids, positions, groups, pixel_values=pixels), is_token


@torch.inference_mode()
def largest_difference(theirs: LlavaForConditionalGeneration) -> float:
    inputs, is_token = prompts()
    wanted = theirs(
        input_ids=inputs.input_ids,
        pixel_values=inputs.pixel_values,
        attention_mask=is_token.long(),
        position_ids=inputs.positions,
    ).logits  # (B, T, V)
    assert wanted.std() > 0.1  # or equality would say nothing
    found = ours(theirs)(**inputs)
    return float((found - wanted)[is_token].abs().max())


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("tower", TOWERS)
def test_logits_equal_transformers(tower: str, decoder: str) -> None:
    assert largest_difference(reference(tower, decoder)) < TOLERANCE


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_grouped_heads_equal_transformers(num_kv_heads: int) -> None:
    theirs = reference("clip", "llama", text={"num_key_value_heads": num_kv_heads, "head_dim": 24})
    assert largest_difference(theirs) < TOLERANCE


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_tied_head_equals_transformers(decoder: str) -> None:
    theirs = reference("siglip", decoder, text={"tie_word_embeddings": True})
    model = ours(theirs)
    assert model.language_model.lm_head.weight is model.language_model.embed_tokens.weight
    assert largest_difference(theirs) < TOLERANCE


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu", "gelu_pytorch_tanh"])
@pytest.mark.parametrize("tower", TOWERS)
def test_activations_equal_transformers(tower: str, activation: str) -> None:
    theirs = reference(tower, "llama", vision={"hidden_act": activation})
    assert largest_difference(theirs) < TOLERANCE


@pytest.mark.parametrize("layer", [-3, -2, -1, 1, 3])
@pytest.mark.parametrize("tower", TOWERS)
def test_features_of_any_layer_equal_transformers(tower: str, layer: int) -> None:
    theirs = reference(tower, "llama", vision_feature_layer=layer)
    assert largest_difference(theirs) < TOLERANCE


@pytest.mark.parametrize("window", [1, 20, 31, 32, 100, None])
def test_sliding_windows_equal_transformers(window: int | None) -> None:
    theirs = reference("clip", "mistral", text={"sliding_window": window})
    assert largest_difference(theirs) < TOLERANCE


def test_a_window_in_all_layers_of_qwen2_equals_transformers() -> None:
    text = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 0}
    assert largest_difference(reference("clip", "qwen2", text=text)) < TOLERANCE


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 1e6},
        {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
        LLAMA3_ROPE,
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_rotary_positions_equal_transformers(rope: dict[str, Any]) -> None:
    theirs = reference("clip", "llama", text={"rope_parameters": rope})
    assert largest_difference(theirs) < TOLERANCE


@torch.inference_mode()
def test_text_without_a_picture_equals_transformers() -> None:
    theirs = reference("clip", "llama")
    ids = torch.arange(40)[None]
    inputs = Inputs(ids, torch.arange(40)[None], torch.zeros(1, 40, dtype=torch.long))
    torch.testing.assert_close(
        ours(theirs)(**inputs), theirs(input_ids=ids).logits, atol=TOLERANCE, rtol=0
    )
