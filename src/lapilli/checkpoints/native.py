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
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lapilli.config import from_dict
from lapilli.errors import CheckpointError
from lapilli.model.llava import Llava
from lapilli.model.spec import LlavaSpec, VisionSpec
from lapilli.model.vit import VisionTransformer
from lapilli.processor.processor import Processor

FORMAT = "lapilli"
VERSION = 1


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
    config = _read_config(folder)
    spec = from_dict(LlavaSpec, config, str(folder / "config.json"))
    with torch.device("meta"):
        model = Llava(spec)
    weights = _read_weights(folder, device, dtype)
    head = "language_model.embed_tokens.weight"
    if spec.decoder.is_tied and head in weights:
        weights["language_model.lm_head.weight"] = weights[head]
    _assign(folder, model, weights)
    if spec.decoder.is_tied:
        model.language_model.lm_head.weight = model.language_model.embed_tokens.weight
    return model.eval(), Processor.load(folder)


def save_tower(folder: Path, tower: VisionTransformer) -> None:
    """Write a vision tower alone, for a later stage to start from."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"format": f"{FORMAT}-vision", "version": VERSION, **asdict(tower.spec)}
    _write(folder, config, dict(tower.state_dict()))


def load_tower(folder: Path) -> VisionTransformer:
    """Read what `save_tower` wrote, as fp32."""
    config = _read_config(folder, FORMAT + "-vision")
    tower = VisionTransformer(from_dict(VisionSpec, config, str(folder / "config.json")))
    _assign(folder, tower, _read_weights(folder, "cpu", torch.float32))
    return tower


def _write(folder: Path, config: dict[str, Any], weights: dict[str, Tensor]) -> None:
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file({k: v.contiguous() for k, v in weights.items()}, folder / "model.safetensors")


def _read_config(folder: Path, wanted: str = FORMAT) -> dict[str, Any]:
    path = folder / "config.json"
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such model folder")
    try:
        config = json.loads(path.read_text())
    except OSError as error:
        raise CheckpointError(f"{path}: missing; this is not a model folder") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON ({error})") from error
    if not isinstance(config, dict) or config.pop("format", None) != wanted:
        raise CheckpointError(f"{path}: not a {wanted} model")
    version = config.pop("version", None)
    if version != VERSION:
        raise CheckpointError(f"{path}: version {version}; this Lapilli reads version {VERSION}")
    return config


def _read_weights(
    folder: Path, device: torch.device | str, dtype: torch.dtype | None
) -> dict[str, Tensor]:
    path = folder / "model.safetensors"
    if not path.exists():
        raise CheckpointError(f"{path}: missing; copy it beside config.json")
    try:
        with safe_open(path, "pt", device=str(device)) as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); copy it again") from error
    return {k: v if dtype is None else v.to(dtype) for k, v in weights.items()}


def _assign(folder: Path, module: nn.Module, weights: dict[str, Tensor]) -> None:
    wanted = module.state_dict()
    faults = [f"{name} is missing" for name in wanted.keys() - weights.keys()]
    faults += [f"{name} is unknown" for name in weights.keys() - wanted.keys()]
    faults += [
        f"{name} is {tuple(weights[name].shape)}, not {tuple(wanted[name].shape)}"
        for name in wanted.keys() & weights.keys()
        if wanted[name].shape != weights[name].shape
    ]
    if faults:
        raise CheckpointError(f"{folder / 'model.safetensors'}: {'; '.join(sorted(faults))}")
    module.load_state_dict(weights, assign=True)
