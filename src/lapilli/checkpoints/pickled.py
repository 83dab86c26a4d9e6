"""Pickled weights, written as safetensors: for `lapilli convert --allow-pickle` alone.

`torch.load` is told to take tensors and nothing else, but a pickle is no format to trust: no other
part of Lapilli reads one.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from torch import Tensor

from lapilli.checkpoints.hub import PICKLED
from lapilli.checkpoints.shards import INDEX
from lapilli.checkpoints.texts import read_json
from lapilli.checkpoints.weights import write_weights
from lapilli.errors import CheckpointError

_PARTS = ("adapter_model.bin", "non_lora_trainables.bin", "mm_projector.bin")
"""Of an adapter, or a projector alone."""
_BESIDE = ("*.json", "*.jinja", "tokenizer.model")


def is_pickled(folder: Path) -> bool:
    """Whether all weights of a folder are pickled."""
    has_pickles = any(folder.glob(PICKLED[0])) or any((folder / name).exists() for name in _PARTS)
    return has_pickles and not any(folder.glob("*model*.safetensors"))


def unpickled(folder: Path, into: Path) -> Path:
    """Return a copy of a model folder, or of a tower's, with its weights in safetensors.

    One file is read after the other.

    Args:
        into: a new folder.

    Raises:
        CheckpointError: a file is damaged, or holds more than tensors.
    """
    into.mkdir(parents=True)
    for pattern in _BESIDE:
        for path in folder.glob(pattern):
            if path.is_file() and not path.name.endswith(".index.json"):
                shutil.copyfile(path, into / path.name)
    if (into / "config.json").exists():
        _take_tower_along(folder, into)
    if not any(folder.glob(PICKLED[0])):
        beside = next(path.name for path in into.glob("*config.json"))
        for path in (folder / name for name in _PARTS):
            if path.exists():
                place = into / f"{path.stem}.safetensors"
                write_weights(place, _apart(_read(path)), {"format": "pt"}, beside=beside)
        return into
    places: dict[str, str] = {}
    for pattern in PICKLED:  # a folder may hold others, which are never read
        for path in sorted(folder.glob(pattern)):
            # The projector's own file holds again what may stand in the others.
            weights = {name: v for name, v in _read(path).items() if name not in places}
            if weights:
                shard = f"model-{path.stem}.safetensors"
                write_weights(into / shard, _apart(weights), {"format": "pt"})
                places |= dict.fromkeys(weights, shard)
    (into / INDEX).write_text(json.dumps({"weight_map": places}))
    return into


def _take_tower_along(folder: Path, into: Path) -> None:
    """Let the copy of an original model name the tower's folder, which may be pickled as well."""
    config = read_json(into / "config.json")
    name = config.get("mm_vision_tower")
    if isinstance(name, str) and (folder / name / "config.json").is_file():
        tower = (folder / name).resolve()
        place = unpickled(tower, into / "tower") if is_pickled(tower) else tower
        (into / "config.json").write_text(json.dumps(config | {"mm_vision_tower": str(place)}))


def _read(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # unpicklers raise whatever the bytes make them
        raise CheckpointError(
            f"{path}: damaged, or holds more than tensors, and was not read "
            f"({type(error).__name__})"
        ) from error
    is_table = isinstance(content, dict) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    )
    if not is_table:
        raise CheckpointError(f"{path}: holds no table of tensors; name another model")
    return dict(content)


def _apart(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that share no memory, as safetensors wants them."""
    seen: set[int] = set()
    result = {}
    for name, value in weights.items():
        storage = value.untyped_storage()
        is_shared = storage.data_ptr() in seen or storage.nbytes() != value.nbytes
        seen.add(storage.data_ptr())
        result[name] = value.clone().contiguous() if is_shared else value.contiguous()
    return result
