from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest
import torch

from lapilli import runtime
from lapilli.errors import ConfigError, LapilliError
from lapilli.runtime import atomic_write, held_alone, resolve_device, resolve_dtype

CPU = torch.device("cpu")


def test_auto_device_is_a_gpu_exactly_where_there_is_one() -> None:
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert resolve_device("auto").type == expected
    assert resolve_device("cpu") == CPU


def test_unknown_device_is_refused_with_the_choices() -> None:
    with pytest.raises(ConfigError, match=r"'gpu' is unknown; use auto, cpu"):
        resolve_device("gpu")


def test_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"torch sees \d+ CUDA devices here"):
        resolve_device(f"cuda:{torch.cuda.device_count()}")


def test_dtype_goes_by_name_and_by_device() -> None:
    assert resolve_dtype("bf16", CPU) is torch.bfloat16
    assert resolve_dtype("float16", CPU) is torch.float16
    assert resolve_dtype(torch.float64, CPU) is torch.float64
    assert resolve_dtype(None, CPU) is torch.float32
    assert resolve_dtype("auto", torch.device("cuda")) is torch.bfloat16
    with pytest.raises(ConfigError, match="'int8' is unknown; use auto, float32"):
        resolve_dtype("int8", CPU)


def test_atomic_write_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    atomic_write(path, b"a long first content")
    atomic_write(path, b"second")
    assert path.read_bytes() == b"second"
    assert list(tmp_path.iterdir()) == [path]


def test_full_disk_keeps_the_last_file_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights.bin"
    atomic_write(path, b"last")

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LapilliError, match=r"weights\.bin: the disk is full; free 2\.0 MB"):
        atomic_write(path, b"x" * 2_000_000)
    assert path.read_bytes() == b"last"
    assert list(tmp_path.iterdir()) == [path]


def test_interrupted_write_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        atomic_write(tmp_path / "weights.bin", b"new")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("folder", ["missing", "a-file"])
def test_write_into_no_folder_is_one_clear_error(tmp_path: Path, folder: str) -> None:
    (tmp_path / "a-file").write_bytes(b"")
    path = tmp_path / folder / "weights.bin"
    with pytest.raises(LapilliError, match="name a folder that can be written") as caught:
        atomic_write(path, b"x")
    assert str(path) in str(caught.value)


def test_versions_name_what_a_result_depends_on() -> None:
    found = runtime.versions()
    assert found.keys() == {"python", "lapilli", "torch", "transformers", "platform"}
    assert found["torch"] == torch.__version__


def test_a_folder_is_held_as_long_as_any_process_that_was_given_it_lives(tmp_path: Path) -> None:
    with held_alone(tmp_path) as lock:
        child = subprocess.Popen(["sleep", "20"], pass_fds=[lock])
    try:
        with pytest.raises(LapilliError, match="another process works in it"):
            held_alone(tmp_path).__enter__()
    finally:
        child.kill()
        child.wait()
    with held_alone(tmp_path):
        pass
