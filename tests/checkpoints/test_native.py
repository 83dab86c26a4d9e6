from __future__ import annotations

import json
import re
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lapilli.checkpoints import native
from lapilli.checkpoints.loading import load
from lapilli.errors import CheckpointError, ConfigError
from lapilli.messages import Message, TextPart
from lapilli.model.llava import Llava
from lapilli.model.quantize import quantize
from lapilli.model.spec import DecoderSpec, LlavaSpec, VisionSpec
from lapilli.model.vit import VisionTransformer
from lapilli.processor.builtin import TEMPLATES
from lapilli.processor.processor import Processor
from lapilli.processor.tokenizer import train_tokenizer

VISION = VisionSpec(16, 8, 16, 2, 2, 32)


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def model(request: pytest.FixtureRequest, processor: Processor) -> Llava:
    torch.manual_seed(0)
    vocab_size = processor.words.tokenizer.get_vocab_size()
    decoder = DecoderSpec(
        vocab_size, 16, 2, 2, 2, 8, 32, rope_scaling={"rope_type": "linear", "factor": 2.0},
        is_tied=request.param, max_positions=64,
    )  # fmt: skip
    spec = LlavaSpec(VISION, decoder, image_token_id=processor.image_token_id)
    return Llava(spec).bfloat16()


@pytest.fixture
def folder(tmp_path: Path, model: Llava, processor: Processor) -> Path:
    native.save(tmp_path / "model", model, processor, card="# A small model\n")
    return tmp_path / "model"


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def message(folder: Path) -> str:
    """What a load says, which is one line that names the folder."""
    with pytest.raises(CheckpointError) as caught:
        native.load(folder)
    text = str(caught.value)
    assert "\n" not in text
    assert str(folder) in text
    return text


def test_a_saved_model_comes_back_bit_by_bit(
    folder: Path, model: Llava, processor: Processor
) -> None:
    read, its_processor = native.load(folder)
    assert read.spec == model.spec
    assert not read.training
    assert read.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert value.dtype == read.state_dict()[name].dtype == torch.bfloat16
        assert torch.equal(value, read.state_dict()[name]), name
    assert its_processor.images == processor.images
    assert its_processor.prompt == processor.prompt
    assert its_processor.chat_template == processor.chat_template
    assert its_processor.words.tokenizer.to_str() == processor.words.tokenizer.to_str()
    assert (folder / "MODEL_CARD.md").read_text() == "# A small model\n"


def test_a_tied_head_is_stored_once_and_stays_tied(folder: Path) -> None:
    decoder = native.load(folder)[0].language_model
    stored = load_file(folder / "model.safetensors")
    assert ("language_model.lm_head.weight" in stored) != decoder.spec.is_tied
    assert (decoder.lm_head.weight is decoder.embed_tokens.weight) == decoder.spec.is_tied


def test_weights_come_in_the_type_that_was_asked_for(folder: Path, model: Llava) -> None:
    read, _ = native.load(folder, dtype=torch.float32)
    for name, value in model.state_dict().items():
        assert torch.equal(value.float(), read.state_dict()[name])


def test_a_tower_comes_back_bit_by_bit(tmp_path: Path) -> None:
    tower = VisionTransformer(VISION)
    native.save_tower(tmp_path / "tower", tower)
    read = native.load_tower(tmp_path / "tower")
    assert read.spec == VISION
    for name, value in tower.state_dict().items():
        assert torch.equal(value, read.state_dict()[name]), name


def test_a_tower_is_not_taken_for_a_model(tmp_path: Path) -> None:
    native.save_tower(tmp_path / "tower", VisionTransformer(VISION))
    assert "config.json: not a lapilli model" in message(tmp_path / "tower")


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "processor.json",
        "chat_template.jinja",
    ],
)
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert f"{folder / name}: missing" in message(folder)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    assert "no such model folder" in message(tmp_path / "nowhere")


@pytest.mark.parametrize("num_bytes", [0, 5, 100, -1])
def test_truncated_weights_are_called_damaged(folder: Path, num_bytes: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:num_bytes])
    assert f"{path}: damaged" in message(folder)


@pytest.mark.parametrize(
    "content", ["{not json", "[1, 2]", "", pytest.param("[" * 10**5, id="deep")]
)
@pytest.mark.parametrize("name", ["config.json", "processor.json"])
def test_a_damaged_text_is_named(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content)
    assert str(folder / name) in message(folder)


def test_every_weight_that_does_not_fit_is_listed(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["projector.linear_1.weight"] = torch.zeros(3, 5)
    weights["language_model.norm.weight"] = torch.zeros(7)
    del weights["vision_tower.class_embedding"]
    weights["language_model.layers.9.mlp.up_proj.weight"] = torch.zeros(1)
    save_file(weights, path)
    text = message(folder)
    assert "projector.linear_1.weight is (3, 5), not (16, 16)" in text
    assert "language_model.norm.weight is (7,), not (16,)" in text
    assert "vision_tower.class_embedding is missing" in text
    assert "language_model.layers.9.mlp.up_proj.weight is unknown" in text


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_version_is_refused(folder: Path, version: Any) -> None:
    change(folder / "config.json", version=version)
    assert f"version {version}; this Lapilli reads version 1" in message(folder)


def test_an_unknown_key_of_the_architecture_is_named(folder: Path) -> None:
    change(folder / "config.json", auto_map={"AutoModel": "code.Model"})
    assert re.search(r"config\.json: unknown key auto_map", message(folder))


@pytest.mark.parametrize(
    ("part", "values", "reason"),
    [
        ("decoder", {"num_kv_heads": 3}, "2 heads do not share 3 key-value heads"),
        ("decoder", {"width": -3}, "width is -3; give 1 or more"),
        ("decoder", {"head_dim": 7}, "head_dim 7 is odd"),
        ("decoder", {"sliding_window": 0}, "sliding_window is 0; give 1 or more"),
        ("decoder", {"rope_theta": -1.0}, "rope_theta is -1.0; give a number above 0"),
        ("decoder", {"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling.rope_type is 'yarn'"),
        ("decoder", {"rope_scaling": {"rope_type": "linear"}}, "rope_scaling.factor is None; give"),
        ("vision", {"norm_eps": 0.0}, "norm_eps is 0.0; give a number above 0"),
        ("vision", {"patch_size": 0}, "patch_size is 0; give 1 or more"),
        ("vision", {"num_heads": 3}, "width 16 does not divide into 3 heads"),
        ("vision", {"feature_layer": 3}, "feature_layer 3 is none of 2 layers"),
        ("vision", {"feature_layer": -4}, "feature_layer -4 is none of 2 layers"),
    ],
)
def test_an_impossible_architecture_is_refused(
    folder: Path, part: str, values: dict[str, Any], reason: str
) -> None:
    path = folder / "config.json"
    change(path, **{part: json.loads(path.read_text())[part] | values})
    assert f"{path}: {part}: {reason}" in message(folder)


def test_an_unknown_projector_is_refused(folder: Path) -> None:
    change(folder / "config.json", projector="qformer")
    assert "projector must be one of 'linear', 'mlp2x_gelu'" in message(folder)


@pytest.mark.parametrize(
    ("part", "values", "reason"),
    [
        ("images", {"mean": ["a", "b", "c"]}, "images.mean[0] must be a number, not 'a'"),
        ("images", {"std": [0.5, 0.5]}, "images.std has 2 items; it takes 3"),
        ("images", {"sizes": 3}, "unknown key images.sizes"),
        ("images", {"size_px": 24}, "images.size_px is 24, the model in config.json takes 16"),
        ("prompt", {"max_tokens": 0}, "prompt: features_per_image and max_tokens must be positive"),
        ("prompt", {"features_per_image": 5}, "prompt.features_per_image is 5, the model"),
        ("prompt", {"image_token": "<pad>"}, "the id of prompt.image_token is 0, the model"),
    ],
)
def test_a_processor_that_does_not_fit_is_refused(
    folder: Path, part: str, values: dict[str, Any], reason: str
) -> None:
    path = folder / "processor.json"
    change(path, **{part: json.loads(path.read_text())[part] | values})
    assert f"{path}: {reason}" in message(folder)


def test_a_processor_is_judged_before_the_weights_are_read(folder: Path) -> None:
    (folder / "processor.json").unlink()
    (folder / "model.safetensors").write_bytes(b"damaged")
    assert "processor.json: missing" in message(folder)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_built_in_template_comes_back(
    name: str, model: Llava, processor: Processor, tmp_path: Path
) -> None:
    tokenizer = train_tokenizer(["How many?"], 280)
    end_of_turn = TEMPLATES[name].end_of_turn or "<|end|>"
    tokenizer.add_special_tokens([end_of_turn])
    prompt = replace(processor.prompt, template=name, end_of_turn=end_of_turn)
    built_in = Processor(tokenizer, processor.images, prompt)
    native.save(tmp_path / "built-in", model, built_in)
    again = native.load(tmp_path / "built-in")[1].template
    turns = (Message("user", (TextPart("Hm?"),)), Message("assistant", (TextPart("Ah."),)))
    wanted, found = (
        template.render(turns, add_generation_prompt=True)
        for template in (built_in.template, again)
    )
    assert found == wanted


def test_whoever_reads_the_settings_reads_the_weights(folder: Path, tmp_path: Path) -> None:
    native.save_tower(tmp_path / "tower", VisionTransformer(VISION))
    for place in (folder, tmp_path / "tower"):
        settings, weights = ((place / n).stat() for n in ("config.json", "model.safetensors"))
        assert weights.st_mode == settings.st_mode


def test_a_processor_whose_words_are_elsewhere_is_refused(folder: Path) -> None:
    settings = json.loads((folder / "processor.json").read_text())
    change(folder / "processor.json", prompt=settings["prompt"] | {"image_token": "<picture>"})
    with pytest.raises(CheckpointError, match=r"has no token '<picture>'"):
        native.load(folder)


def test_a_model_of_smaller_weights_is_loaded_layer_by_layer(folder: Path, model: Llava) -> None:
    made, _ = load(folder, device="cpu", dtype="float32", quantize="int8")
    assert made.dtype == torch.float32
    wanted = deepcopy(model)
    quantize(wanted.language_model, "int8", torch.device("cpu"))
    ids = torch.zeros(1, 4, dtype=torch.long)
    asked = ids, torch.arange(4)[None], torch.zeros_like(ids)
    with torch.inference_mode():
        torch.testing.assert_close(made(*asked), wanted.float()(*asked))
    if model.spec.decoder.is_tied:
        assert made.language_model.lm_head.weight is made.language_model.embed_tokens.weight
    held = [name for name, p in made.language_model.named_parameters() if p.ndim == 2]
    assert set(held) <= {"embed_tokens.weight", "lm_head.weight"}


def test_an_unknown_kind_of_weights_is_refused_before_any_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="quantize is 'int3'; give int8 or int4, or leave it out"):
        load(tmp_path / "gone", quantize="int3")


def test_smaller_weights_are_not_written(
    tmp_path: Path, folder: Path, processor: Processor
) -> None:
    made, _ = load(folder, device="cpu", quantize="int8")
    with pytest.raises(CheckpointError, match="cannot be written; load the model without"):
        native.save(tmp_path / "again", made, processor)
    assert not (tmp_path / "again").exists()
