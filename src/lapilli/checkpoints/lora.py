"""Adapters in folders of their own, as PEFT writes them: read, put on a model, and written.

adapter_config.json             the rank, what a product counts, the model that it belongs to
adapter_model.safetensors       the narrow matrices, and weights that were trained whole
non_lora_trainables.safetensors weights that LLaVA's original code trained whole: the projector
"""

# R rank, I inputs, O outputs

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from lapilli.checkpoints import hf_names, original_names
from lapilli.checkpoints.blank import blank_model
from lapilli.checkpoints.lora_settings import CONFIG, AdapterConfig
from lapilli.checkpoints.shards import part_file
from lapilli.checkpoints.weights import FLOATS, listed, read_weights, write_weights
from lapilli.errors import CheckpointError
from lapilli.model.llava import Llava
from lapilli.model.lora import (
    LoraSettings,
    add_lora,
    linears,
    lora_layers,
    lora_parameters,
    lora_settings,
    merged,
)
from lapilli.model.spec import LlavaSpec

WEIGHTS = "adapter_model.safetensors"
OTHER_WEIGHTS = "non_lora_trainables.safetensors"

WRAPPED = "base_model.model."
"""How PEFT begins the names of a model's weights."""

_MATRIX = re.compile(r"(.+)\.lora_([AB])(?:\.default)?\.weight")
_WHOLE = re.compile(r"\.(?:modules_to_save(?:\.default)?|base_layer)\.")
_HEAD = "language_model.lm_head.weight"


@dataclass(frozen=True)
class Adapter:
    """What an adapter does to a model, under the names of ours.

    Attributes:
        settings: with the rank and alpha of each layer where it differs.
        matrices: (R, I) and (O, R) of each layer.
        whole: weights that take the place of the model's.
    """

    settings: LoraSettings
    matrices: Mapping[str, tuple[Tensor, Tensor]]
    whole: Mapping[str, Tensor]


def read(folder: Path, config: AdapterConfig, spec: LlavaSpec) -> Adapter:
    """Read an adapter for a model of an architecture, before that model is read.

    Raises:
        CheckpointError: a file is missing or damaged; names fit nothing in the model, a matrix
            lacks the other, is of another shape, holds NaN or no floating-point numbers.
    """
    weights = _read_files(folder)
    model = blank_model(spec)
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    found = _Found()
    for theirs, value in weights.items():
        found.take(theirs, value, shapes)
    faults = [*found.faults, *_misfits(found, config, shapes, set(linears(model)))]
    if not weights:
        faults.append("it holds no weights")
    if faults:
        raise CheckpointError(*listed(folder, faults))
    if spec.decoder.is_tied:
        found.whole.pop(_HEAD, None)
    ranks = {layer: config.rank_of(theirs) for layer, theirs in found.layers.items()}
    alphas = {layer: config.alpha_of(theirs) for layer, theirs in found.layers.items()}
    settings = LoraSettings(
        rank=config.rank,
        alpha=config.alpha,
        is_rank_stabilized=config.is_rank_stabilized,
        ranks={layer: rank for layer, rank in ranks.items() if rank != config.rank},
        alphas={layer: alpha for layer, alpha in alphas.items() if alpha != config.alpha},
    )
    return Adapter(settings, {layer: found.pair(layer) for layer in found.layers}, found.whole)


def put_on(model: Llava, adapter: Adapter, *, is_kept: bool) -> None:
    """Change a model as an adapter says.

    Args:
        is_kept: the adapter stays apart from the weights, in layers of PEFT, to learn on;
            otherwise it is added to them, in their own type and place.

    Raises:
        ConfigError: it is to stay apart, and PEFT is not installed.
    """
    _replace(model, adapter.whole)
    if not is_kept:
        for layer, (a, b) in adapter.matrices.items():
            linear = cast(nn.Linear, model.get_submodule(layer))
            weight = merged(linear.weight, a, b, adapter.settings.scale_of(layer))
            linear.weight = nn.Parameter(weight)
        return
    add_lora(model, adapter.matrices, adapter.settings)
    values = {
        f"{layer}.lora_{which}.default.weight": value
        for layer, pair in adapter.matrices.items()
        for which, value in zip("AB", pair, strict=True)
    }
    with torch.no_grad():
        for name, parameter in lora_parameters(model).items():
            parameter.copy_(values[name])


def save(folder: Path, model: Llava, base: str) -> None:
    """Write a model's adapter, as PEFT on `transformers` loads it.

    With it goes the projector whole, unless it has an adapter itself.

    Args:
        base: the model without the adapter: a folder, or an id on the hub.

    Raises:
        CheckpointError: the model has no adapter.
    """
    if not lora_layers(model):
        raise CheckpointError(
            f"{folder}: the model has no adapter to write; add one, or save it all"
        )
    settings = lora_settings(model)
    is_projector_whole = not any(layer.startswith("projector.") for layer in lora_layers(model))
    whole = ("projector.", "image_newline") if is_projector_whole else ("image_newline",)
    theirs = {layer: _in_memory(f"{layer}.").removesuffix(".") for layer in lora_layers(model)}
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
        "use_rslora": settings.is_rank_stabilized,
        "bias": "none",
        "target_modules": sorted(theirs.values()),
        "modules_to_save": ["multi_modal_projector"] if is_projector_whole else None,
        "rank_pattern": {re.escape(theirs[layer]): r for layer, r in settings.ranks.items()},
        "alpha_pattern": {re.escape(theirs[layer]): a for layer, a in settings.alphas.items()},
        "inference_mode": True,
    }
    weights = {
        name.replace(".default.", "."): value.detach()
        for name, value in lora_parameters(model).items()
    } | {name: value for name, value in model.state_dict().items() if name.startswith(whole)}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    named = {WRAPPED + _in_memory(name): value for name, value in weights.items()}
    write_weights(folder / WEIGHTS, named, {"format": "pt"}, beside=CONFIG)


# Reading


def _read_files(folder: Path) -> dict[str, Tensor]:
    weights = read_weights(part_file(folder, WEIGHTS), "cpu", None)
    other = part_file(folder, OTHER_WEIGHTS)
    return weights | (read_weights(other, "cpu", None) if other.exists() else {})


class _Found:
    """What files hold, under our names where there are such.

    Attributes:
        layers: the names of layers in the files, by ours.
        matrices: by our name of the layer, and "A" or "B".
        whole: weights that were trained whole, by our names.
        faults: what fits nothing.
    """

    def __init__(self) -> None:
        self.layers: dict[str, str] = {}
        self.matrices: dict[tuple[str, str], Tensor] = {}
        self.whole: dict[str, Tensor] = {}
        self.faults: list[str] = []

    def take(self, theirs: str, value: Tensor, shapes: Mapping[str, torch.Size]) -> None:
        """Take one tensor of a file."""
        name = theirs.removeprefix(WRAPPED)
        match = _MATRIX.fullmatch(name)
        layer = match[1] if match else ""
        ours = _name_among(shapes, f"{layer}.weight" if match else _WHOLE.sub(".", name))
        if ours == "":
            return
        if ours is None:
            self.faults.append(f"{theirs} is unknown")
        elif match:
            self.layers[ours.removesuffix(".weight")] = layer
            self.matrices[ours.removesuffix(".weight"), match[2]] = value
        else:
            self.whole[ours] = value
        if value.dtype not in FLOATS.values():
            self.faults.append(f"{theirs} holds no floating-point numbers of 16 bits or more")
        elif value.numel() and not value.isfinite().all():
            self.faults.append(f"{theirs} holds NaN or infinity")

    def pair(self, layer: str) -> tuple[Tensor, Tensor]:
        """Both matrices of a layer."""
        return self.matrices[layer, "A"], self.matrices[layer, "B"]


def _name_among(shapes: Mapping[str, torch.Size], theirs: str) -> str | None:
    """Return our name of a weight; empty for one that is not needed, None for an unknown one."""
    names = [original_names.to_ours(theirs), hf_names.to_ours(theirs)]
    if None in names:
        return ""
    return next((name for name in names if name in shapes), None)


def _misfits(
    found: _Found, config: AdapterConfig, shapes: Mapping[str, torch.Size], fitting: set[str]
) -> Iterator[str]:
    for layer, theirs in found.layers.items():
        if layer not in fitting:
            yield f"{theirs} is no layer that can have an adapter"
            continue
        for which in "AB":
            if (layer, which) not in found.matrices:
                yield f"{theirs}.lora_{which}.weight is missing"
                continue
            num_outputs, num_inputs = shapes[f"{layer}.weight"]
            rank = config.rank_of(theirs)
            wanted = (rank, num_inputs) if which == "A" else (num_outputs, rank)
            shape = tuple(found.matrices[layer, which].shape)
            if shape != wanted:
                yield f"{theirs}.lora_{which}.weight is {shape}, not {wanted}"
    for name, value in found.whole.items():
        if value.shape != shapes[name]:
            yield f"{name} is {tuple(value.shape)}, not {tuple(shapes[name])}"


def _replace(model: Llava, weights: Mapping[str, Tensor]) -> None:
    own = dict(model.named_parameters())
    ready = {name: value.to(own[name].device, own[name].dtype) for name, value in weights.items()}
    model.load_state_dict(ready, strict=False, assign=True)
    if model.spec.decoder.is_tied:
        model.language_model.lm_head.weight = model.language_model.embed_tokens.weight


# Writing

_IN_MEMORY = {
    "language_model.model.": "model.language_model.",
    "language_model.lm_head.": "lm_head.",
    "multi_modal_projector.": "model.multi_modal_projector.",
    "vision_tower.vision_model.": "model.vision_tower.",
    "image_newline": "model.image_newline",
}
"""Names on disk, to those of models in memory, by which PEFT finds them."""


def _in_memory(name: str) -> str:
    return hf_names.replace_start(hf_names.to_theirs(name), _IN_MEMORY)
