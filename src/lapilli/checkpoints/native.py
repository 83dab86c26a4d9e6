"""Lapilli's own model folder: numbers in JSON, weights in safetensors, never code.

config.json            the architecture (`LlavaSpec`), with a format name and version
model.safetensors      weights under the model's own names
tokenizer.json         words to ids (`tokenizers`)
processor.json         how pictures and turns are prepared
chat_template.jinja    how a conversation is written
MODEL_CARD.md          data, licences, scores
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor

from lapilli.checkpoints.blank import blank_model
from lapilli.checkpoints.texts import read_json
from lapilli.checkpoints.weights import assign, fill, read_weights
from lapilli.config import from_dict
from lapilli.errors import CheckpointError, ConfigError
from lapilli.model.llava import Llava
from lapilli.model.spec import LlavaSpec, VisionSpec
from lapilli.model.vit import VisionTransformer
from lapilli.processor.processor import Processor

Spec = TypeVar("Spec", LlavaSpec, VisionSpec)

FORMAT = "lapilli"
VERSION = 1

_TOWER_FORMAT = f"{FORMAT}-vision"
_WEIGHTS = "model.safetensors"


def save(folder: Path, model: Llava, processor: Processor, *, card: str = "") -> None:
    """Write a model folder; weights keep their type.

    Args:
        card: text of MODEL_CARD.md; none is written when empty.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = dict(model.state_dict())
    if model.spec.decoder.is_tied:
        del weights["language_model.lm_head.weight"]
    _write(folder, {"format": FORMAT, "version": VERSION, **asdict(model.spec)}, weights)
    processor.save(folder)
    if card:
        (folder / "MODEL_CARD.md").write_text(card)


def load(
    folder: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> tuple[Llava, Processor]:
    """Read a model folder.

    Args:
        dtype: type of the weights in memory; as stored by default.

    Raises:
        CheckpointError: a file is missing or damaged, or weights and architecture disagree.
    """
    model = blank_model(_read_spec(LlavaSpec, folder, FORMAT))
    path = folder / _WEIGHTS
    fill(model, read_weights(path, device, dtype), path)
    return model.eval(), Processor.load(folder)


def save_tower(folder: Path, tower: VisionTransformer) -> None:
    """Write a vision tower alone, for a later stage to start from."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"format": _TOWER_FORMAT, "version": VERSION, **asdict(tower.spec)}
    _write(folder, config, dict(tower.state_dict()))


def load_tower(folder: Path) -> VisionTransformer:
    """Read what `save_tower` wrote, as fp32."""
    tower = VisionTransformer(_read_spec(VisionSpec, folder, _TOWER_FORMAT))
    path = folder / _WEIGHTS
    assign(tower, read_weights(path, "cpu", torch.float32), path)
    return tower


def _write(folder: Path, config: dict[str, Any], weights: dict[str, Tensor]) -> None:
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file({k: v.contiguous() for k, v in weights.items()}, folder / _WEIGHTS)


def _read_spec(kind: type[Spec], folder: Path, wanted: str) -> Spec:
    path = folder / "config.json"
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such model folder")
    config = read_json(path)
    if config.pop("format", None) != wanted:
        raise CheckpointError(f"{path}: not a {wanted} model")
    version = config.pop("version", None)
    if version != VERSION:
        raise CheckpointError(f"{path}: version {version}; this Lapilli reads version {VERSION}")
    try:
        return from_dict(kind, config, str(path))
    except ConfigError as error:
        raise CheckpointError(f"{error}; copy the whole model folder") from error
