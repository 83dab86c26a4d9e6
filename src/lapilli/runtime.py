"""Where the work runs: device, dtype, threads, seeds, ranks, and files that are never half."""

from __future__ import annotations

import errno
import os
import platform
import random
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from lapilli.errors import ConfigError, LapilliError

if TYPE_CHECKING:
    import torch

DTYPES = {
    "float32": "float32",
    "fp32": "float32",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float16": "float16",
    "fp16": "float16",
}
"""Names that a person may give, and torch's own."""


def resolve_device(name: str = "auto") -> torch.device:
    """Return the device of that name; "auto" is the first GPU where there is one, else the CPU.

    Raises:
        ConfigError: no such device, or it is not in this machine.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"device {name!r} is unknown; use auto, cpu, cuda or cuda:0") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ConfigError(f"device {name!r}: torch sees {count} CUDA devices here; use auto or cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"device {name!r}: torch sees no Metal GPU here; use auto or cpu")
    return device


def resolve_dtype(name: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """Return the dtype to compute in; None and "auto" are bfloat16 on a GPU, float32 on a CPU.

    Raises:
        ConfigError: no such dtype.
    """
    import torch

    if isinstance(name, torch.dtype):
        return name
    if name is None or name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if name not in DTYPES:
        raise ConfigError(f"dtype {name!r} is unknown; use auto, {', '.join(DTYPES)}")
    dtype: torch.dtype = getattr(torch, DTYPES[name])
    return dtype


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators (all devices)."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def set_threads(count: int | None = None) -> int:
    """Set how many threads torch computes with, and return that number.

    Args:
        count: None takes OMP_NUM_THREADS, or else this process's share of the cores when
            torchrun started several processes on the machine.

    Raises:
        ConfigError: not a positive number.
    """
    import torch

    if count is None:
        processes = max(1, _from_environment("LOCAL_WORLD_SIZE", 1))
        count = _from_environment("OMP_NUM_THREADS", max(1, _num_cores() // processes))
    if count < 1:
        raise ConfigError(f"{count} threads: give a positive number")
    torch.set_num_threads(count)
    return count


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process's place among those of one run.

    Attributes:
        rank: 0 to world_size - 1.
        world_size: processes in all.
        local_rank: place among the processes of this machine; picks the GPU.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ConfigError(
                f"RANK {self.rank} of WORLD_SIZE {self.world_size}: ranks count from 0; "
                "start the run with torchrun"
            )

    @classmethod
    def from_env(cls) -> Ranks:
        """Read what torchrun set; a process on its own is rank 0 of 1.

        Raises:
            ConfigError: the variables are no numbers, or contradict each other.
        """
        return cls(
            rank=_from_environment("RANK", 0),
            world_size=_from_environment("WORLD_SIZE", 1),
            local_rank=_from_environment("LOCAL_RANK", 0),
        )

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that prints and saves."""
        return self.rank == 0


def atomic_write(path: str | Path, content: bytes) -> None:
    """Write a file so that others see the old one or the whole new one, also after a crash.

    Raises:
        LapilliError: the disk is full, or the folder cannot be written; the old file stands.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        try:
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = f"the disk is full; free {len(content) / 1e6:.1f} MB, the last file is kept"
        else:
            remedy = f"{error.strerror}; name a folder that can be written"
        raise LapilliError(f"{path}: {remedy}") from error


def versions() -> dict[str, str]:
    """Versions to write beside results: python, lapilli, torch, transformers, platform."""
    packages = {name: metadata.version(name) for name in ("lapilli", "torch", "transformers")}
    return {"python": platform.python_version(), **packages, "platform": platform.platform()}


def _num_cores() -> int:
    """Cores that this process may use; only Linux can tell them from those of the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _sync_folder(folder: Path) -> None:
    """Make a rename durable: the entry lives in the folder, not in the file."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _from_environment(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    if not text:
        return default
    if not text.isdecimal():
        raise ConfigError(f"environment variable {name} is {text!r}; set a number or unset it")
    return int(text)
