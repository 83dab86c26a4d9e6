"""Models of the original's stages: a projector alone, or an adapter, on a language model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from originals import make_original
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from lapilli.app.converting import convert
from lapilli.checkpoints.loading import load, read_spec
from lapilli.errors import CheckpointError
from lapilli.messages import ImagePart, Message, TextPart

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")

ASKED = [
    (Message("user", (ImagePart(Image.new("RGB", (40, 30), "red")), TextPart("What is this?"))),)
]


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A whole model of the original's, its tower beside it."""
    return make_original(tmp_path, "clip, llama", is_inside=False).folder


@pytest.fixture
def words(whole: Path) -> Path:
    """Its language model alone, as `transformers` writes it."""
    folder = whole.with_name("words")
    folder.mkdir()
    for path in whole.glob("tokenizer*"):
        shutil.copyfile(path, folder / path.name)
    config = json.loads((whole / "config.json").read_text())
    kept = {key: value for key, value in config.items() if not key.startswith("mm_")}
    kept |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(kept))
    weights = load_file(whole / "model.safetensors")
    save_file(
        {name: value for name, value in weights.items() if "mm_projector" not in name},
        folder / "model.safetensors",
    )
    return folder


@pytest.fixture
def projector(whole: Path, words: Path) -> Path:
    """Its projector alone, as the stage that aligns writes it."""
    folder = whole.with_name("projector")
    folder.mkdir()
    config = json.loads((whole / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"_name_or_path": str(words)}))
    save_file(projector_weights(whole), folder / "mm_projector.safetensors")
    return folder


def projector_weights(whole: Path) -> dict[str, torch.Tensor]:
    weights = load_file(whole / "model.safetensors")
    return {name: value for name, value in weights.items() if "mm_projector" in name}


@pytest.fixture
def adapter(whole: Path, words: Path) -> Path:
    """An adapter on its words and another projector, as the original writes them."""
    folder = whole.with_name("adapter")
    adapted(words).save_pretrained(folder)
    shutil.copyfile(whole / "config.json", folder / "config.json")
    torch.manual_seed(3)
    trained = {
        f"base_model.model.{name}": torch.randn_like(value) / 4
        for name, value in projector_weights(whole).items()
    }
    save_file(trained, folder / "non_lora_trainables.safetensors")
    return folder


def adapted(words: Path) -> Any:
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    settings = peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM")
    model = peft.get_peft_model(LlamaForCausalLM.from_pretrained(words), settings).eval()
    torch.manual_seed(1)
    for value in model.parameters():
        if value.requires_grad:
            torch.nn.init.normal_(value, 0, 0.2)
    return model


@torch.inference_mode()
def logits(*args: Any, **options: Any) -> torch.Tensor:
    model, processor = load(*args, device="cpu", **options)
    return model(**processor.batch(ASKED))


def test_a_projector_finds_the_words_and_the_tower(
    whole: Path, words: Path, projector: Path
) -> None:
    wanted = logits(whole)
    assert torch.equal(logits(projector), wanted)
    assert torch.equal(logits(projector, base=str(words)), wanted)
    assert torch.equal(logits(projector, vision_tower=whole.with_name("tower")), wanted)
    assert read_spec(projector) == read_spec(whole)


def test_an_adapter_on_words_is_the_one_on_the_whole_model(whole: Path, adapter: Path) -> None:
    made = logits(adapter)
    assert torch.equal(made, logits(adapter, base=whole))
    assert (made - logits(whole)).abs().max() > 0.1
    torch.testing.assert_close(logits(adapter, adapter="keep"), made, atol=1e-4, rtol=0)


@torch.inference_mode()
def test_words_are_read_as_peft_reads_them(words: Path, adapter: Path) -> None:
    ids = torch.randint(10, 300, (2, 12))
    wanted = adapted(words)(input_ids=ids).logits
    decoder = load(adapter, device="cpu")[0].language_model
    made = decoder.lm_head(decoder(decoder.embed_tokens(ids), torch.arange(12).expand(2, -1)))
    torch.testing.assert_close(made, wanted, atol=1e-4, rtol=0)


# Pickles


@pytest.mark.parametrize("name", ["projector", "adapter"])
def test_pickles_are_read_by_convert_alone_where_allowed(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder: Path = request.getfixturevalue(name)
    wanted = logits(folder)
    for path in [*folder.glob("*.safetensors"), tmp_path / "words" / "model.safetensors"]:
        stem = "pytorch_model" if path.stem == "model" else path.stem
        torch.save(load_file(path), path.with_name(f"{stem}.bin"))
        path.unlink()
    with pytest.raises(CheckpointError, match=r"pickled, which can run code.*--allow-pickle"):
        load(folder)
    convert(
        str(folder), tmp_path / "made", "native", base=str(tmp_path / "words"), allow_pickle=True
    )
    assert torch.equal(logits(tmp_path / "made"), wanted)


# What is refused


def message(*args: Any, **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_words_that_are_not_here_are_asked_for(projector: Path) -> None:
    path = projector / "config.json"
    config = json.loads(path.read_text())
    for name, said in (("lmsys/nowhere", "is not on this disk"), (7, "its base is not named")):
        path.write_text(json.dumps(config | {"_name_or_path": name}))
        assert said in message(projector)


def test_a_projector_takes_words_alone(projector: Path, whole: Path) -> None:
    assert "no language model, which a projector takes" in message(projector, base=whole)


def test_an_adapter_that_names_no_tower_takes_a_whole_model(adapter: Path, words: Path) -> None:
    (adapter / "config.json").unlink()
    assert "does not say which vision tower it sees with" in message(adapter)


def test_a_projector_of_another_width_is_told(projector: Path) -> None:
    weights = load_file(projector / "mm_projector.safetensors")
    weights["model.mm_projector.2.bias"] = torch.zeros(7)
    weights["model.something"] = torch.zeros(7)
    save_file(weights, projector / "mm_projector.safetensors")
    said = message(projector)
    assert "model.mm_projector.2.bias is (7,), not (32,)" in said
    assert "something is unknown" in said


def test_a_missing_projector_is_told(adapter: Path) -> None:
    (adapter / "non_lora_trainables.safetensors").unlink()
    assert "mm_projector.safetensors: missing" in message(adapter)
