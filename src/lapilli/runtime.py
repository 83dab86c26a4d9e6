"""Where the work runs: device, dtype, versions, and files that are never half."""

from __future__ import annotations

import errno
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
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
        _sync(path.parent)
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


def rename_durably(partial: Path, final: Path) -> None:
    """Rename a folder of files once all of it is on the disk, so that a crash leaves no half."""
    for path in partial.iterdir():
        _sync(path)
    _sync(partial)
    partial.rename(final)
    _sync(final.parent)


@contextmanager
def replacing_files(folder: Path) -> Iterator[Path]:
    """Give a place to write files in, which in the end replace those of `folder`, name by name.

    The folder stays as it was until all of them are on the disk, and where anything fails. Whoever
    has an old file open, or mapped into memory, keeps it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{os.getpid()}.partial"  # inside, as the folder may be a disk of its own
    shutil.rmtree(partial, ignore_errors=True)  # left by a kill, where processes count from one
    try:
        partial.mkdir()
        yield partial
        written = sorted(partial.iterdir())
        for path in written:
            _sync(path)
        for path in written:
            path.replace(folder / path.name)
        _sync(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def held_alone(folder: Path) -> Iterator[int]:
    """Keep a folder for this process and those to which it hands the descriptor that is given.

    The system lets it go when the last of them ends, however it ends. Where the system has no such
    locks (Windows), nothing is kept.

    Raises:
        LapilliError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if os.name == "posix":
            import fcntl

            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise LapilliError(
                    f"{folder}: another process works in it; wait for it, or name another folder"
                ) from error
        yield descriptor
    finally:
        os.close(descriptor)


def _sync(path: Path) -> None:
    """Wait until a file, or a folder's list of entries, is on the disk."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
