from __future__ import annotations

import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from lapilli.checkpoints import hf, loading, native
from lapilli.checkpoints.loading import embedded_folder, find, load, read_spec
from lapilli.engine.engine import Engine
from lapilli.errors import CheckpointError, ConfigError
from lapilli.messages import Message, Sampling, TextPart


@pytest.fixture
def folder(folder: Path) -> Path:
    """A small model folder of our own format, stored in bf16."""
    model, processor = hf.load(folder)
    own = folder.parent / "own"
    native.save(own, model.bfloat16(), processor)
    return own


@pytest.fixture
def embedded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in the place of the embedded model's."""
    monkeypatch.setattr(loading, "embedded_folder", lambda: folder)
    return folder


def test_weights_compute_in_fp32_on_a_cpu_unless_told_otherwise(folder: Path) -> None:
    model, _ = load(folder, device="cpu")
    assert model.dtype == torch.float32
    assert not model.training
    model, _ = load(folder, device="cpu", dtype="bf16")
    assert model.dtype == torch.bfloat16


def test_a_model_that_was_asked_can_be_saved_again(folder: Path, tmp_path: Path) -> None:
    model, processor = load(folder, device="cpu")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    list(Engine(model, processor).respond([(Message("user", (TextPart("?"),)),)], Sampling(2)))
    native.save(tmp_path / "again", model, processor)
    after = load(tmp_path / "again", device="cpu")[0].state_dict()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, atol=0, rtol=0)


def test_asking_loads_neither_transformers_nor_the_compiler(folder: Path) -> None:
    code = (
        "import sys; from lapilli import MultimodalAssistant as A; "
        f"A({str(folder)!r}, device='cpu').query([], 'What?', max_new_tokens=3); "
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"transformers", "torch._dynamo", "sympy"} & set(done.stdout.split())


def test_embedded_model_has_a_name_and_is_the_default(embedded: Path) -> None:
    assert loading.find(None) == loading.find("lapilli-tiny") == embedded


def test_other_folders_are_read_as_hugging_face_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava"}))
    read: list[Any] = []
    fake = types.ModuleType("hf")
    fake.load = lambda folder, *, device, dtype: (read.append((folder, device, dtype)), None)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lapilli.checkpoints.hf", fake)
    monkeypatch.setattr("lapilli.checkpoints.hf", fake, raising=False)
    load(tmp_path, device="cpu")
    assert read == [(tmp_path, torch.device("cpu"), torch.float32)]


@pytest.mark.parametrize("name", [None, "lapilli-tiny", Path("lapilli-tiny")])
def test_the_embedded_model_is_found_by_its_name(name: str | Path | None) -> None:
    assert find(name) == embedded_folder()


def test_unknown_name_lists_the_known_ones_and_downloads_nothing() -> None:
    with pytest.raises(CheckpointError) as caught:
        load("some-model")
    message = str(caught.value)
    assert "some-model" in message
    assert "lapilli-tiny, llava-1.5-7b" in message
    assert "Nothing is downloaded" in message


@pytest.mark.parametrize("content", [None, "{not json", pytest.param("[" * 10**5, id="deep")])
def test_folder_without_a_readable_config_is_said(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json: (missing|not JSON)"):
        load(tmp_path)


def test_package_without_weights_says_so(embedded: Path) -> None:
    (embedded / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="lapilli-tiny: this installation has no weights"):
        load()


def test_the_architecture_of_every_format_is_read_without_weights(folder: Path) -> None:
    theirs = folder.with_name("model")
    wanted = load(folder, device="cpu")[0].spec
    for place in (folder, theirs):
        (place / "model.safetensors").unlink()
        assert read_spec(place) == wanted


def test_unknown_device_is_said_before_weights_are_read(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="device 'gpu' is unknown"):
        load(folder, device="gpu")
