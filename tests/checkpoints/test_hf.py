"""Folders that `transformers` wrote, and folders that it reads."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from their_names import names_in_memory_of_4, names_in_memory_of_5, names_on_disk
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    Qwen2Config,
    SiglipVisionConfig,
)

from lapilli.checkpoints import hf
from lapilli.engine.engine import Engine
from lapilli.errors import CheckpointError
from lapilli.messages import Conversation, Sampling
from lapilli.model.llava import Llava
from lapilli.processor.processor import Processor
from lapilli.processor.tokenizer import Words

Question = Callable[..., Conversation]


def message(folder: Path) -> str:
    """What a load says, in one line."""
    with pytest.raises(CheckpointError) as caught:
        hf.load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# What we write


@torch.inference_mode()
def test_transformers_reads_what_we_write_with_equal_logits(
    model: Llava, processor: Processor, question: Question, tmp_path: Path
) -> None:
    hf.save(tmp_path, model, processor)
    theirs, report = LlavaForConditionalGeneration.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(report.values()), report
    inputs = processor.batch([question()])
    wanted = theirs(input_ids=inputs.input_ids, pixel_values=inputs.pixel_values).logits
    torch.testing.assert_close(model(**inputs), wanted, atol=1e-4, rtol=0)


class Spelled(Words):
    """Words whose text is their ids: two answers read alike only where they are alike."""

    def decode(self, ids: list[int]) -> str:
        return "".join(f"{token} " for token in ids)


def test_transformers_generates_the_answers_of_our_engine(
    model: Llava, processor: Processor, question: Question, tmp_path: Path
) -> None:
    count = 24
    asked = [
        question("How many?"),
        question("How many red circles are there?", num_pictures=2),
        question("Red circles?", num_pictures=0),
    ]
    hf.save(tmp_path, model, processor)
    theirs = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    inputs = processor.batch(asked)
    made = theirs.generate(
        input_ids=inputs.input_ids,
        attention_mask=(inputs.groups >= 0).long(),
        pixel_values=inputs.pixel_values,
        max_new_tokens=count,
        do_sample=False,
    )[:, inputs.input_ids.shape[1] :].tolist()
    wanted = [list(takewhile(lambda token: token != processor.end_id, ids)) for ids in made]

    spelling = copy.copy(processor)
    spelling.words = Spelled(processor.words.tokenizer)
    told = [""] * len(asked)
    for piece in Engine(model, spelling).respond(asked, Sampling(count)):
        told[piece.index] += piece.text
    assert [[int(word) for word in text.split()] for text in told] == wanted
    assert len({token for ids in wanted for token in ids}) > 4  # or equality would say little


def test_whoever_reads_the_settings_reads_the_weights(folder: Path) -> None:
    settings, weights = ((folder / name).stat() for name in ("config.json", "model.safetensors"))
    assert weights.st_mode == settings.st_mode


def test_their_generation_stops_where_an_answer_ends(folder: Path, processor: Processor) -> None:
    model = LlavaForConditionalGeneration.from_pretrained(folder)
    for theirs in (model.generation_config, GenerationConfig.from_pretrained(folder)):
        assert theirs.eos_token_id == processor.end_id
        assert theirs.pad_token_id == processor.words.id("<pad>")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_we_write_comes_back_bit_by_bit(
    model: Llava, processor: Processor, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = model.to(dtype)
    hf.save(tmp_path, model, processor)
    again, its_processor = hf.load(tmp_path)
    assert again.spec == model.spec
    assert not again.training
    assert again.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert again.state_dict()[name].dtype == dtype, name
        assert torch.equal(value, again.state_dict()[name]), name
    assert its_processor.images == processor.images
    assert its_processor.prompt == processor.prompt
    assert its_processor.chat_template == processor.chat_template


# What they write


def their_model(name: str, **text: Any) -> LlavaForConditionalGeneration:
    """A random model of theirs, of the shape that the folder fixture's has."""
    vision_class, text_class = {
        "clip, llama": (CLIPVisionConfig, LlamaConfig),
        "siglip, mistral": (SiglipVisionConfig, MistralConfig),
        "siglip, qwen2": (SiglipVisionConfig, Qwen2Config),
    }[name]
    torch.manual_seed(0)
    vision = vision_class(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2,
        image_size=16, patch_size=8,
    )  # fmt: skip
    words = text_class(
        vocab_size=284, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, **text,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=words, image_token_index=5,
        vision_feature_select_strategy="default" if vision_class is CLIPVisionConfig else "full",
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.15)
    return model


@pytest.fixture
def their_folder(tmp_path: Path, processor: Processor) -> Path:
    """The files that LLaVA-1.5-7B has beside config.json and weights."""
    path = tmp_path / "theirs"
    path.mkdir()
    processor.words.tokenizer.save(str(path / "tokenizer.json"))
    words = {"eos_token": {"content": "<|end|>"}, "pad_token": "<pad>", "bos_token": "<|user|>"}
    pictures = {
        "crop_size": {"height": 16, "width": 16},
        "do_center_crop": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "CLIPImageProcessor",
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"shortest_edge": 16},
    }
    texts = {
        "tokenizer_config.json": words,
        "chat_template.json": {"chat_template": processor.chat_template},
        "preprocessor_config.json": pictures,
    }
    for name, content in texts.items():
        (path / name).write_text(json.dumps(content))
    return path


def largest_difference(
    folder: Path, theirs: LlavaForConditionalGeneration, asked: Conversation
) -> float:
    model, processor = hf.load(folder)
    inputs = processor.batch([asked])
    with torch.inference_mode():
        wanted = theirs(input_ids=inputs.input_ids, pixel_values=inputs.pixel_values).logits
        return float((model(**inputs) - wanted).abs().max())


@pytest.mark.parametrize("is_tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("name", ["clip, llama", "siglip, mistral", "siglip, qwen2"])
def test_we_read_what_transformers_writes_with_equal_logits(
    name: str, is_tied: bool, their_folder: Path, question: Question
) -> None:
    theirs = their_model(name, tie_word_embeddings=is_tied)
    theirs.save_pretrained(their_folder)
    assert largest_difference(their_folder, theirs, question()) < 1e-4


def test_we_read_weights_in_shards(their_folder: Path, question: Question) -> None:
    theirs = their_model("clip, llama")
    theirs.save_pretrained(their_folder, max_shard_size="50KB")
    assert len(list(their_folder.glob("model-*.safetensors"))) > 1
    assert largest_difference(their_folder, theirs, question()) < 1e-4


def names_on_disk_with_constants(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of LLaVA-1.5-7B's files, with constants that older versions saved."""
    return names_on_disk(weights) | {
        "vision_tower.vision_model.embeddings.position_ids": torch.arange(5),
        "language_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4),
    }


@pytest.mark.parametrize(
    "rename", [names_in_memory_of_5, names_in_memory_of_4, names_on_disk_with_constants]
)
@pytest.mark.parametrize("name", ["clip, llama", "siglip, qwen2"])
def test_we_read_the_names_of_every_version(
    name: str, rename: Any, their_folder: Path, question: Question
) -> None:
    theirs = their_model(name)
    theirs.save_pretrained(their_folder)
    weights = rename(dict(theirs.state_dict()))
    start = (
        "language_model.model."
        if rename is names_on_disk_with_constants
        else "model.language_model."
    )
    assert f"{start}layers.0.mlp.up_proj.weight" in weights
    save_file(weights, their_folder / "model.safetensors")
    assert largest_difference(their_folder, theirs, question()) < 1e-4


# What is refused


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "preprocessor_config.json",
    ],
)
def test_a_missing_or_damaged_file_is_named(folder: Path, name: str) -> None:
    path = folder / name
    content = path.read_bytes()
    path.unlink()
    assert f"{path}: missing" in message(folder)
    for damaged in (b"", content[:-20], b"\xff" * 99):
        path.write_bytes(damaged)
        assert str(path) in message(folder)


def test_a_missing_shard_is_named(their_folder: Path) -> None:
    their_model("clip, llama").save_pretrained(their_folder, max_shard_size="50KB")
    lost = sorted(their_folder.glob("model-*.safetensors"))[1]
    lost.unlink()
    assert f"{lost}: missing" in message(their_folder)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", ".."])
def test_an_index_does_not_lead_out_of_the_folder(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": name}}))
    assert "is no shard of this folder" in message(folder)


@pytest.mark.parametrize("content", [{}, {"weight_map": {}}, {"weight_map": {"a": 1}}])
def test_an_index_that_lists_no_shards_is_refused(folder: Path, content: Any) -> None:
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps(content))
    assert f"{index}: has no weight_map" in message(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00003.bin"])
def test_pickled_weights_are_refused(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    assert "its weights are pickled" in message(folder)


def test_weights_that_do_not_fit_are_listed_by_their_names_there(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["multi_modal_projector.linear_1.bias"] = torch.zeros(3)
    del weights["vision_tower.vision_model.pre_layrnorm.weight"]
    weights["image_newline"] = torch.zeros(3)
    save_file(weights, path)
    text = message(folder)
    assert "multi_modal_projector.linear_1.bias is (3,), not (32,)" in text
    assert "vision_tower.vision_model.pre_layrnorm.weight is missing" in text
    assert "image_newline is unknown" in text


def test_weights_of_another_model_are_told_in_few_words(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 40
    (folder / "config.json").write_text(json.dumps(config))
    text = message(folder)
    assert text.count(" is missing") == 8
    assert text.endswith(f"; and {38 * 9 - 8} more faults")


@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_weights_that_are_no_floating_point_numbers_are_refused(
    folder: Path, dtype: torch.dtype | None
) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    name = "multi_modal_projector.linear_1.bias"
    save_file(weights | {name: weights[name].to(torch.int8)}, path)
    with pytest.raises(CheckpointError, match=f"{name} holds int8, not floating-point"):
        hf.load(folder, dtype=dtype)
