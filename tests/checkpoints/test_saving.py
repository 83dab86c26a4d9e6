"""Folders that are written over: the old files last until all new ones are whole."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lapilli.checkpoints import hf, native
from lapilli.errors import CheckpointError
from lapilli.model.llava import Llava
from lapilli.model.spec import LlavaSpec
from lapilli.processor.processor import Processor

LAYOUTS = pytest.mark.parametrize("layout", [hf, native], ids=["hf", "native"])


@pytest.fixture
def model(specs: dict[str, LlavaSpec], make: Callable[[LlavaSpec], Llava]) -> Llava:
    return make(specs["clip, llama, tied"])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@LAYOUTS
def test_whoever_has_the_old_weights_open_keeps_them(
    layout: Any, model: Llava, processor: Processor, tmp_path: Path
) -> None:
    layout.save(tmp_path, model, processor)
    weights = tmp_path / "model.safetensors"
    old = weights.read_bytes()
    with weights.open("rb") as opened:
        layout.save(tmp_path, model.bfloat16(), processor)
        assert opened.read() == old
    assert weights.read_bytes() != old
    assert not any(path.name.startswith(".") for path in tmp_path.iterdir())


def test_what_a_kill_left_does_not_get_into_the_next_folder(
    model: Llava, processor: Processor, tmp_path: Path
) -> None:
    left = tmp_path / f".{os.getpid()}.partial"
    left.mkdir()
    (left / "half.safetensors").write_bytes(b"half")
    native.save(tmp_path, model, processor)
    assert "half.safetensors" not in contents(tmp_path)
    assert not left.exists()


WRITE_OVER = """
import sys, torch
from pathlib import Path
from lapilli.checkpoints import hf, native
for layout, folder in ((hf, Path(sys.argv[1])), (native, Path(sys.argv[2]))):
    model, processor = layout.load(folder)  # maps the weights, and reads them when they are saved
    torch.nn.init.ones_(model.language_model.norm.weight)
    layout.save(folder, model, processor)
    print(sum(float(value.double().sum()) for value in model.state_dict().values()) != 0)
"""


def test_a_model_goes_back_into_the_folder_that_it_was_mapped_from(
    model: Llava, processor: Processor, tmp_path: Path
) -> None:
    torch.nn.init.ones_(model.language_model.norm.weight)
    folders = {hf: tmp_path / "hf", native: tmp_path / "native"}
    wanted = {}
    for layout, folder in folders.items():
        layout.save(folder, model, processor)
        wanted[folder] = load_file(folder / "model.safetensors")
    # Not in this process: what reads a file that was cut off is killed.
    command = [sys.executable, "-c", WRITE_OVER, *map(str, folders.values())]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (0, ["True", "True"]), done.stderr
    for folder, weights in wanted.items():
        found = load_file(folder / "model.safetensors")
        assert found.keys() == weights.keys()
        assert all(torch.equal(found[name], value) for name, value in weights.items())


@contextmanager
def files_up_to(num_bytes: int) -> Iterator[None]:
    """As where the disk is full: what is longer cannot be written."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


@LAYOUTS
@pytest.mark.parametrize(("num_bytes", "error"), [(100, OSError), (60_000, CheckpointError)])
def test_a_full_disk_keeps_the_old_folder(
    layout: Any, num_bytes: int, error: type[Exception], model: Llava, processor: Processor,
    tmp_path: Path,
) -> None:  # fmt: skip
    """Be it a text that cannot be written, or the weights."""
    layout.save(tmp_path, model, processor)
    old = contents(tmp_path)
    assert len(old["model.safetensors"]) > 60_000 > len(old["tokenizer.json"])
    with files_up_to(num_bytes), pytest.raises(error) as caught:
        layout.save(tmp_path, model.bfloat16().float(), processor)
    assert "\n" not in str(caught.value)
    assert contents(tmp_path) == old
