"""Which files hold a folder's weights, and what their headers say; no weight is read."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lapilli.checkpoints.texts import read_json
from lapilli.errors import CheckpointError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PROJECTOR = "mm_projector.safetensors"


@dataclass(frozen=True, slots=True)
class Contents:
    """What files of weights hold together.

    Attributes:
        parameters: how many numbers.
        dtype: the type of most of them, by the format's name for it ("BF16").
        size_bytes: of the files.
    """

    parameters: int
    dtype: str
    size_bytes: int


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold a folder's weights: one, or the shards that an index lists.

    A file that is named may be missing; whoever reads it says so.

    Raises:
        CheckpointError: the weights are pickled, or the index is damaged or leads elsewhere.
    """
    index = folder / INDEX
    if (folder / WEIGHTS).exists() or not index.exists():
        if not (folder / WEIGHTS).exists() and any(folder.glob("pytorch_model*.bin")):
            raise CheckpointError(
                f"{folder}: its weights are pickled, which can run code; where you trust them, "
                f"run: lapilli convert {folder} DST --to native --allow-pickle"
            )
        return [folder / WEIGHTS]
    shards = read_json(index).get("weight_map")
    is_map = isinstance(shards, dict) and all(isinstance(name, str) for name in shards.values())
    if not shards or not is_map:
        raise CheckpointError(f"{index}: has no weight_map; copy it again")
    names = sorted(set(shards.values()))
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{index}: {name!r} is no shard of this folder; copy it again")
    return [folder / name for name in names]


def part_file(folder: Path, name: str) -> Path:
    """Return the file of weights that are no whole model.

    A file that is not there at all is missed by whoever reads it.

    Raises:
        CheckpointError: it is pickled.
    """
    path = folder / name
    pickled = path.with_suffix(".bin")
    if not path.exists() and pickled.exists():
        raise CheckpointError(
            f"{pickled}: pickled, which can run code; where you trust it, "
            f"run: lapilli convert {folder} DST --to native --allow-pickle"
        )
    return path


def is_projector(folder: Path) -> bool:
    """Whether a folder holds a projector and no whole model."""
    path = folder / PROJECTOR
    is_whole = any(folder.glob("model*.safetensors")) or any(folder.glob("pytorch_model*.bin"))
    return not is_whole and (path.exists() or path.with_suffix(".bin").exists())


def weight_names(files: Iterable[Path]) -> set[str]:
    """Return the names of all weights, by the files' headers.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    names: set[str] = set()
    for path in files:
        with _opened(path) as file:
            names |= set(file.keys())
    return names


def contents(files: Iterable[Path]) -> Contents:
    """Return what files of weights hold, by their headers.

    Raises:
        CheckpointError: one is missing or damaged.
    """
    parameters: Counter[str] = Counter()
    size_bytes = 0
    for path in files:
        with _opened(path) as file:
            size_bytes += path.stat().st_size
            for name in file.keys():  # noqa: SIM118 - a file, not a mapping
                tensor = file.get_slice(name)
                parameters[tensor.get_dtype()] += math.prod(tensor.get_shape())
    dtype = parameters.most_common(1)[0][0] if parameters else "none"
    return Contents(parameters.total(), dtype, size_bytes)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, "np") as file:  # does without torch
            yield file
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: missing; copy it beside config.json") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); copy it again") from error
