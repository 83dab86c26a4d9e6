"""Towers and language models in folders that `transformers` wrote."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from lapilli.checkpoints.blank import blank_model
from lapilli.checkpoints.parts import read_language_model, read_tower
from lapilli.checkpoints.weights import Source, fill_from_files, write_weights
from lapilli.errors import CheckpointError
from lapilli.model.llava import Llava
from lapilli.model.spec import LlavaSpec

SIDE = 30
VISION: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2,
    "image_size": SIDE, "patch_size": 7,
}  # fmt: skip
TEXT: dict[str, Any] = {
    "vocab_size": 60, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
    "num_attention_heads": 2,
}  # fmt: skip
TOWERS = {
    "clip, alone": lambda: CLIPVisionModel(CLIPVisionConfig(**VISION)),
    "clip, with text": lambda: CLIPModel(CLIPConfig(vision_config=VISION, text_config=TEXT)),
    "siglip, alone": lambda: SiglipVisionModel(SiglipVisionConfig(**VISION)),
    "siglip, with text": lambda: SiglipModel(SiglipConfig(vision_config=VISION, text_config=TEXT)),
}
DECODER: dict[str, Any] = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
DECODERS: dict[str, tuple[type, type]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
}


def randomized(model: Any) -> Any:
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.2)
    return model.eval()


def write_tower(folder: Path, name: str) -> Any:
    theirs = randomized(TOWERS[name]())
    theirs.save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SIDE)
    images.save_pretrained(folder)
    return theirs


def write_language_model(folder: Path, name: str, **more: Any) -> Any:
    config, kind = DECODERS[name]
    theirs = randomized(kind(config(**DECODER, **more)))
    theirs.save_pretrained(folder, max_shard_size="50KB")
    return theirs


def joined(tower: Path, language_model: Path, rest: Path, feature_layer: int) -> Llava:
    """A model of both, and of a projector that lies in a third folder."""
    eyes, mouth = read_tower(tower, feature_layer), read_language_model(language_model)
    spec = LlavaSpec(eyes.spec, mouth.spec, image_token_id=3)
    rest.mkdir()
    (rest / "config.json").write_text("{}")
    weights = {f"projector.{n}": v for n, v in Llava(spec).projector.state_dict().items()}
    write_weights(rest / "model.safetensors", weights)
    model = blank_model(spec)
    whole = Source([rest / "model.safetensors"], rest)
    fill_from_files(model, [whole, eyes.weights, mouth.weights])
    return model


@torch.inference_mode()
@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize("feature_layer", [-1, -2])
def test_a_tower_makes_the_features_of_transformers(
    name: str, feature_layer: int, tmp_path: Path
) -> None:
    theirs = write_tower(tmp_path / "tower", name)
    write_language_model(tmp_path / "words", "llama")
    model = joined(tmp_path / "tower", tmp_path / "words", tmp_path / "rest", feature_layer)
    pixels = torch.randn(2, 3, SIDE, SIDE)
    tower = theirs.vision_model if name.endswith("text") else theirs
    states = tower(pixels, output_hidden_states=True).hidden_states[feature_layer]
    wanted = states[:, 1:] if name.startswith("clip") else states
    torch.testing.assert_close(model.vision_tower(pixels), wanted, atol=1e-4, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("is_tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("name", DECODERS)
def test_a_language_model_makes_the_logits_of_transformers(
    name: str, is_tied: bool, tmp_path: Path
) -> None:
    write_tower(tmp_path / "tower", "clip, alone")
    theirs = write_language_model(tmp_path / "words", name, tie_word_embeddings=is_tied)
    model = joined(tmp_path / "tower", tmp_path / "words", tmp_path / "rest", -2)
    ids = torch.arange(10, 30)[None]
    positions, groups = torch.arange(20)[None], torch.zeros(1, 20, dtype=torch.long)
    made = model(input_ids=ids, positions=positions, groups=groups)
    torch.testing.assert_close(made, theirs(ids).logits, atol=1e-4, rtol=0)


def test_a_tower_says_how_its_pictures_are_prepared(tmp_path: Path) -> None:
    write_tower(tmp_path, "clip, with text")
    images = read_tower(tmp_path, -2).images
    assert (images.size_px, images.mode, images.resample) == (SIDE, "crop", "bicubic")
    assert images.mean == (0.48145466, 0.4578275, 0.40821073)
    path = tmp_path / "preprocessor_config.json"
    about = json.loads(path.read_text())
    squashed = {"height": SIDE, "width": SIDE}
    path.write_text(json.dumps(about | {"size": squashed, "do_center_crop": False}))
    assert read_tower(tmp_path, -2).images == replace(images, mode="squash")


def test_parts_of_other_kinds_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "dinov2"}))
    with pytest.raises(CheckpointError, match="model_type is 'dinov2'; supported is 'clip_vision"):
        read_tower(tmp_path, -2)
    path.write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(CheckpointError, match="vision_config is missing"):
        read_tower(tmp_path, -2)
    path.write_text(json.dumps({"model_type": "mamba"}))
    with pytest.raises(CheckpointError, match="model_type is 'mamba'; supported is 'llama'"):
        read_language_model(tmp_path)
    path.write_text(json.dumps({"model_type": "llama", "auto_map": {"AutoModel": "x.Y"}}))
    with pytest.raises(CheckpointError, match="auto_map names code to run"):
        read_language_model(tmp_path)
