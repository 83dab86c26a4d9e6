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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from lapilli.checkpoints.blank import blank_model
from lapilli.checkpoints.texts import read_json, read_text
from lapilli.checkpoints.weights import (
    Source,
    assign,
    fill_from_files,
    read_weights,
    stored,
    write_weights,
)
from lapilli.config import from_dict
from lapilli.errors import CheckpointError, ConfigError
from lapilli.model.llava import Llava
from lapilli.model.spec import LlavaSpec, VisionSpec
from lapilli.model.vit import VisionTransformer
from lapilli.processor.builtin import TEMPLATES, jinja_source
from lapilli.processor.images import ImageSettings
from lapilli.processor.processor import Processor, PromptSettings
from lapilli.processor.tokenizer import load_tokenizer
from lapilli.runtime import replacing_files

T = TypeVar("T")
Spec = TypeVar("Spec", LlavaSpec, VisionSpec)

FORMAT = "lapilli"
VERSION = 1

_TOWER_FORMAT = f"{FORMAT}-vision"
_WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class _Settings:
    """What `processor.json` holds."""

    images: ImageSettings
    prompt: PromptSettings


def save(folder: Path, model: Llava, processor: Processor, *, card: str = "") -> None:
    """Write a model folder; weights keep their type.

    Files that are there are replaced when all new ones are written; the model may be the one that
    was read from them.

    Args:
        card: text of MODEL_CARD.md; none is written when empty.

    Raises:
        CheckpointError: the weights have 8 or 4 bits, or cannot be written.
    """
    config = {"format": FORMAT, "version": VERSION, **asdict(model.spec)}
    weights = stored(model)
    with replacing_files(folder) as partial:
        _write(partial, config, weights)
        _write_processor(partial, processor)
        if card:
            (partial / "MODEL_CARD.md").write_text(card, encoding="utf-8")


def load(
    folder: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> tuple[Llava, Processor]:
    """Read a model folder.

    Args:
        dtype: type of the weights in memory; as stored by default.

    Raises:
        CheckpointError: a file is missing or damaged, or they disagree with each other.
    """
    spec = read_spec(folder)
    processor = _read_processor(folder, spec)  # its faults are told before gigabytes are read
    model = blank_model(spec)
    path = folder / _WEIGHTS
    fill_from_files(model, [Source([path], path)], device=device, dtype=dtype)
    return model.eval(), processor


def read_spec(folder: Path) -> LlavaSpec:
    """Read the architecture alone.

    Raises:
        CheckpointError: `config.json` is missing, damaged or of another format.
    """
    return _read_spec(LlavaSpec, folder, FORMAT)


def save_tower(folder: Path, tower: VisionTransformer) -> None:
    """Write a vision tower alone, for a later stage to start from."""
    config = {"format": _TOWER_FORMAT, "version": VERSION, **asdict(tower.spec)}
    with replacing_files(folder) as partial:
        _write(partial, config, dict(tower.state_dict()))


def load_tower(folder: Path) -> VisionTransformer:
    """Read what `save_tower` wrote, as fp32."""
    tower = VisionTransformer(_read_spec(VisionSpec, folder, _TOWER_FORMAT))
    path = folder / _WEIGHTS
    assign(tower, read_weights(path, "cpu", torch.float32), path)
    return tower


def _write(folder: Path, config: dict[str, Any], weights: dict[str, Tensor]) -> None:
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    write_weights(folder / _WEIGHTS, weights)


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
    return _build(kind, config, path)


def _write_processor(folder: Path, processor: Processor) -> None:
    processor.words.tokenizer.save(str(folder / "tokenizer.json"))
    settings = _Settings(processor.images, processor.prompt)
    (folder / "processor.json").write_text(json.dumps(asdict(settings), indent=2) + "\n")
    template = processor.chat_template or jinja_source(processor.prompt.template)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def _read_processor(folder: Path, spec: LlavaSpec) -> Processor:
    path = folder / "processor.json"
    settings = _build(_Settings, read_json(path), path)
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    name, template_path = settings.prompt.template, folder / "chat_template.jinja"
    has_no_file = name in TEMPLATES and jinja_source(name) is None
    template = None if has_no_file and not template_path.exists() else read_text(template_path)
    processor = Processor(tokenizer, settings.images, settings.prompt, template)
    for what, found, wanted in (
        ("images.size_px", settings.images.size_px, spec.vision.image_size),
        ("images.tiling", settings.images.tiling, spec.tiling),
        ("prompt.features_per_image", settings.prompt.features_per_image, spec.vision.num_features),
        ("the id of prompt.image_token", processor.image_token_id, spec.image_token_id),
    ):
        if found != wanted:
            raise CheckpointError(
                f"{path}: {what} is {found}, the model in config.json takes {wanted}; copy the "
                "whole model folder"
            )
    return processor


def _build(kind: type[T], content: dict[str, Any], path: Path) -> T:
    try:
        return from_dict(kind, content, str(path))
    except ConfigError as error:
        raise CheckpointError(f"{error}; copy the whole model folder") from error
