"""Adapters that PEFT wrote for models of `transformers`, and adapters that it reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from their_names import names_in_memory_of_4, names_on_disk
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from lapilli.checkpoints import hf, lora, native
from lapilli.checkpoints.hf_processor import processor_files
from lapilli.checkpoints.loading import load, load_stored
from lapilli.engine.engine import Engine
from lapilli.errors import CheckpointError
from lapilli.messages import Conversation, Sampling
from lapilli.model.lora import lora_layers, merge_and_unload
from lapilli.processor.processor import Processor

Question = Callable[..., Conversation]

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`"),  # PEFT asks for the old name
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`"),
]

DECODER = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"
SETTINGS: dict[str, dict[str, Any]] = {
    "decoder": {"target_modules": DECODER, "r": 4, "lora_alpha": 6},
    "rank-stabilized": {"target_modules": DECODER, "r": 4, "lora_alpha": 3, "use_rslora": True},
    "two kinds of layers, one rank for each": {
        "target_modules": DECODER, "r": 4, "lora_alpha": 6,
        "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 3},
        "alpha_pattern": {"v_proj": 5, r"^model.language_model.layers.0.self_attn.k_proj": 1},
    },
    "decoder, projector whole": {
        "target_modules": DECODER, "r": 4, "lora_alpha": 6,
        "modules_to_save": ["multi_modal_projector"],
    },
    "tower, projector, head": {
        "target_modules": ["fc1", "q_proj", "linear_2", "lm_head"], "r": 3, "lora_alpha": 9,
    },
}  # fmt: skip


@pytest.fixture
def base(tmp_path: Path, processor: Processor) -> Path:
    """A LLaVA in the layout of Hugging Face, with an untied head."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2,
        image_size=16, patch_size=8,
    )  # fmt: skip
    words = LlamaConfig(
        vocab_size=284, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    config = LlavaConfig(vision_config=vision, text_config=words, image_token_index=5)
    theirs = LlavaForConditionalGeneration(config)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.15)
    folder = tmp_path / "base"
    theirs.save_pretrained(folder)
    for name, text in processor_files(processor, hf.read_spec(folder)).items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def adapted(base: Path, **settings: Any) -> Any:
    """Their model with an adapter that has learned something."""
    theirs = LlavaForConditionalGeneration.from_pretrained(base)
    torch.manual_seed(1)
    model = peft.get_peft_model(theirs, peft.LoraConfig(**settings)).eval()
    for value in model.parameters():
        if value.requires_grad:
            torch.nn.init.normal_(value, 0, 0.2)
    return model


@pytest.fixture
def folder(base: Path) -> Path:
    """An adapter, as PEFT writes it, that names its base."""
    path = base.parent / "adapter"
    adapted(base, **SETTINGS["decoder, projector whole"]).save_pretrained(path)
    return path


@torch.inference_mode()
def their_logits(theirs: Any, processor: Processor, asked: Conversation) -> Tensor:
    inputs = processor.batch([asked])
    return theirs(input_ids=inputs.input_ids, pixel_values=inputs.pixel_values).logits


@torch.inference_mode()
def our_logits(loaded: tuple[Any, Processor], asked: Conversation) -> Tensor:
    model, processor = loaded
    return model(**processor.batch([asked]))


@pytest.mark.parametrize("name", SETTINGS)
def test_logits_equal_those_of_peft_merged_and_apart(
    name: str, base: Path, processor: Processor, question: Question
) -> None:
    theirs = adapted(base, **SETTINGS[name])
    theirs.save_pretrained(path := base.parent / "adapter")
    wanted = their_logits(theirs, processor, question())
    plain = our_logits(load(base), question())
    assert (wanted - plain).abs().max() > 0.05
    for how in ("merge", "keep"):
        loaded = load(path, device="cpu", adapter=how)
        assert bool(lora_layers(loaded[0])) == (how == "keep")
        assert not loaded[0].training
        made = our_logits(loaded, question())
        torch.testing.assert_close(made, wanted, atol=1e-4, rtol=0)


def rename(path: Path, to: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Write an adapter's weights under other names."""
    start = "base_model.model."
    weights = {name.removeprefix(start): v for name, v in load_file(path).items()}
    save_file({start + name: value for name, value in to(weights).items()}, path)


@pytest.mark.parametrize("names", [names_in_memory_of_4, names_on_disk])
def test_names_of_older_versions_are_read(
    names: Any, base: Path, processor: Processor, question: Question
) -> None:
    theirs = adapted(base, **SETTINGS["tower, projector, head"])
    theirs.save_pretrained(path := base.parent / "adapter")
    before = load_file(path / "adapter_model.safetensors").keys()
    rename(path / "adapter_model.safetensors", names)
    assert load_file(path / "adapter_model.safetensors").keys() != before
    wanted = their_logits(theirs, processor, question())
    made = our_logits(load(path, device="cpu"), question())
    torch.testing.assert_close(made, wanted, atol=1e-4, rtol=0)


def test_an_adapter_in_the_original_names_comes_with_a_projector_beside_it(
    folder: Path, question: Question
) -> None:
    wanted = our_logits(load(folder, device="cpu"), question())
    path = folder / "adapter_model.safetensors"
    weights = {
        name.replace("model.language_model.", "model."): value
        for name, value in load_file(path).items()
    }
    numbers = {"linear_1": "0", "linear_2": "2"}
    projector = {}
    for name in [name for name in weights if "projector" in name]:
        value = weights.pop(name)
        for theirs, number in numbers.items():
            name = name.replace(f"multi_modal_projector.{theirs}", f"mm_projector.{number}")
        projector[name] = value
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in weights
    assert "base_model.model.model.mm_projector.2.bias" in projector
    save_file(weights, path)
    save_file(projector, folder / "non_lora_trainables.safetensors")
    made = our_logits(load(folder, device="cpu"), question())
    assert torch.equal(made, wanted)


def test_the_engine_answers_alike_merged_and_apart(folder: Path, question: Question) -> None:
    asked = [question("How many?"), question("Red circles?", num_pictures=2)]
    answers = []
    for how in ("merge", "keep"):
        model, processor = load(folder, device="cpu", adapter=how)
        told = [""] * len(asked)
        for piece in Engine(model, processor).respond(asked, Sampling(24)):
            told[piece.index] += piece.text
        answers.append(told)
    assert answers[0] == answers[1]
    assert len(set("".join(answers[0]))) > 4  # or equality would say little


# Bases


def test_a_base_beside_the_adapter_is_found(folder: Path, base: Path) -> None:
    change(folder, base_model_name_or_path="../base")
    load(folder)


def test_a_base_that_is_named_goes_before_the_adapters(folder: Path, base: Path) -> None:
    change(folder, base_model_name_or_path="nowhere/at-all")
    load(folder, base=base)
    load(folder, base=str(base))


def test_a_base_in_the_native_layout_keeps_its_type(
    folder: Path, base: Path, question: Question
) -> None:
    model, processor = hf.load(base)
    native.save(folder.parent / "native", model.bfloat16(), processor)
    merged, _ = load_stored(folder, base=folder.parent / "native")
    assert {value.dtype for value in merged.state_dict().values()} == {torch.bfloat16}
    wanted, _ = load(folder, base=folder.parent / "native", device="cpu")
    for name, value in wanted.state_dict().items():
        torch.testing.assert_close(merged.state_dict()[name].float(), value, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("name", ["nowhere/at-all", "x" * 9000, "a\0b", "/does/not/exist"])
def test_a_base_that_is_not_here_is_not_downloaded(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: Any) -> None:
        raise AssertionError("asked the network")

    monkeypatch.setattr("lapilli.checkpoints.hub._download", forbidden)
    change(folder, base_model_name_or_path=name)
    assert "is not on this disk; name a folder with --base" in message(folder)


def test_a_base_that_nobody_names_is_asked_for(folder: Path) -> None:
    change(folder, base_model_name_or_path=None)
    assert "its base is not named; name it with --base" in message(folder)


def test_an_adapter_is_no_base(folder: Path) -> None:
    change(folder, base_model_name_or_path=str(folder))
    assert "no whole model, so it is no base" in message(folder)


def test_a_whole_model_takes_no_base(base: Path) -> None:
    with pytest.raises(CheckpointError, match="takes no base"):
        load(base, base=base)


# What we write


def test_peft_reads_what_we_write(
    folder: Path, base: Path, processor: Processor, question: Question
) -> None:
    model, _ = load(folder, device="cpu", adapter="keep")
    lora.save(folder.parent / "written", model, str(base))
    theirs = peft.PeftModel.from_pretrained(
        LlavaForConditionalGeneration.from_pretrained(base), folder.parent / "written"
    ).eval()
    wanted = our_logits((model, processor), question())
    made = their_logits(theirs, processor, question())
    torch.testing.assert_close(made, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "name", ["two kinds of layers, one rank for each", "tower, projector, head"]
)
def test_what_we_write_comes_back_bit_by_bit(name: str, base: Path) -> None:
    adapted(base, **SETTINGS[name]).save_pretrained(path := base.parent / "adapter")
    model, _ = load(path, device="cpu", adapter="keep")
    lora.save(base.parent / "written", model, str(base))
    again, _ = load(base.parent / "written", device="cpu", adapter="keep")
    assert again.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    merge_and_unload(model), merge_and_unload(again)
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_a_model_with_an_adapter_is_not_written_as_a_whole_one(
    folder: Path, processor: Processor
) -> None:
    model, _ = load(folder, device="cpu", adapter="keep")
    for save in (hf.save, native.save):
        with pytest.raises(CheckpointError, match="has an adapter; merge it"):
            save(folder.parent / "whole", model, processor)


# What is refused


def change(folder: Path, **values: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def message(folder: Path) -> str:
    """What a load says, in one line."""
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("peft_type", "IA3"),
        ("bias", "all"),
        ("use_dora", True),
        ("lora_bias", True),
        ("fan_in_fan_out", True),
        ("layer_replication", [[0, 2], [1, 2]]),
        ("megatron_config", {"a": 1}),
        ("trainable_token_indices", [1]),
        ("alora_invocation_tokens", [1]),
        ("use_qalora", True),
        ("init_lora_weights", "pissa"),
        ("a_way_of_tomorrow", "on"),
        ("r", 0),
        ("lora_alpha", "16"),
        ("lora_alpha", -1),
        ("rank_pattern", {"q_proj": "4"}),
        ("rank_pattern", [1]),
        ("alpha_pattern", {"(a+)+b": 4}),
        ("alpha_pattern", {"(": 4}),
        ("alpha_pattern", {"a" * 999: 4}),
        ("base_model_name_or_path", 7),
        ("base_model_name_or_path", {}),
    ],
)
def test_other_arithmetic_is_refused_by_its_key(folder: Path, key: str, value: Any) -> None:
    change(folder, **{key: value})
    said = message(folder)
    assert str(folder) in said
    assert key in said or not value


def test_names_that_fit_nothing_are_all_told(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    start = "base_model.model.model.language_model.layers."
    strange = {
        f"{start}7.self_attn.q_proj.lora_A.weight": torch.zeros(4, 32),
        f"{start}0.self_attn.w_proj.lora_B.weight": torch.zeros(32, 4),
        f"{start}0.self_attn.q_proj.lora_magnitude_vector": torch.zeros(32),
        "something.else": torch.zeros(1),
    }
    save_file(load_file(path) | strange, path)
    said = message(folder)
    assert all(f"{name} is unknown" in said for name in strange)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("lora_A", torch.zeros(4, 31), "lora_A.weight is (4, 31), not (4, 32)"),
        ("lora_A", torch.zeros(5, 32), "lora_A.weight is (5, 32), not (4, 32)"),
        ("lora_B", torch.full((32, 4), torch.nan), "holds NaN"),
        ("lora_B", torch.zeros(32, 4, dtype=torch.int8), "no floating-point numbers"),
        ("lora_B", None, "lora_B.weight is missing"),
    ],
)
def test_a_matrix_that_does_not_fit_is_told(
    folder: Path, name: str, value: Tensor | None, said: str
) -> None:
    path = folder / "adapter_model.safetensors"
    weights = load_file(path)
    key = f"base_model.model.model.language_model.layers.0.self_attn.q_proj.{name}.weight"
    weights.pop(key)
    save_file(weights if value is None else weights | {key: value}, path)
    assert said in message(folder)
    assert str(folder) in message(folder)


def test_an_adapter_of_another_model_is_told_before_weights_are_read(
    folder: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = json.loads((base / "config.json").read_text())
    config["text_config"]["hidden_size"] = 64
    (base / "config.json").write_text(json.dumps(config))
    (base / "model.safetensors").unlink()
    assert "lora_A.weight is (4, 32), not (4, 64)" in message(folder)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_damaged_file_is_named(folder: Path, name: str) -> None:
    path = folder / name
    content = path.read_bytes()
    for damaged in (b"", content[:-20], b"\xff" * 99):
        path.write_bytes(damaged)
        assert str(path) in message(folder)


def test_an_adapter_without_weights_is_refused(folder: Path) -> None:
    save_file({}, folder / "adapter_model.safetensors")
    assert "holds no weights" in message(folder)
    (folder / "adapter_model.safetensors").unlink()
    assert "adapter_model.safetensors: missing" in message(folder)
