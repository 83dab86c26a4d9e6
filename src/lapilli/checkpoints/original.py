"""Model folders in the layout of the code that LLaVA was published with, read and written.

config.json              the language model's configuration, and what the original added to it
model*.safetensors       weights; the vision tower's among them, or in a folder of its own
tokenizer.json           words to ids; or tokenizer.model, which is converted
tokenizer_config.json    which ids begin, end and fill a text
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lapilli.checkpoints.blank import blank_model
from lapilli.checkpoints.hf_processor import images_to_hf, processor_files, special_ids, whole_mode
from lapilli.checkpoints.hf_spec import vision_to_hf
from lapilli.checkpoints.lora import OTHER_WEIGHTS, WRAPPED
from lapilli.checkpoints.original_names import to_ours, to_theirs
from lapilli.checkpoints.original_processor import read_processor
from lapilli.checkpoints.original_spec import (
    OriginalConfig,
    config_from_original,
    config_to_original,
)
from lapilli.checkpoints.parity import own_mode
from lapilli.checkpoints.parts import read_language_model
from lapilli.checkpoints.shards import PROJECTOR, WEIGHTS, part_file, weight_files, weight_names
from lapilli.checkpoints.texts import read_json
from lapilli.checkpoints.towers import (
    PUBLISHED_TOWERS,
    NamedTower,
    asked_tower,
    named_tower,
    no_tower,
)
from lapilli.checkpoints.weights import Source, fill_from_files, stored, write_weights
from lapilli.errors import CheckpointError, ConfigError
from lapilli.model.llava import Llava
from lapilli.model.spec import LlavaSpec, VisionSpec
from lapilli.processor.images import ImageSettings
from lapilli.processor.processor import Processor
from lapilli.runtime import replacing_files
from lapilli.tiling import Tiling

_TOWER = "model.vision_tower.vision_tower."
_OF_PROJECTOR = ("projector.", "image_newline")
_ABOUT_WORDS = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def load(
    folder: Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    vision_tower: str | Path | None = None,
    language_model: Path | None = None,
) -> tuple[Llava, Processor]:
    """Read a model folder.

    Args:
        dtype: type of the weights in memory; as stored by default.
        vision_tower: the tower's folder, or its id on the hub, which is downloaded unless it is in
            the hub's cache; None for what the folder names, which is not downloaded. Weights in
            the model folder go before the tower's own.
        language_model: the folder of the words and their weights, where the model folder holds a
            projector alone, or an adapter with one beside it.

    Raises:
        CheckpointError: a file is missing or damaged, the architecture is not supported, the tower
            is not here, or weights and architecture disagree.
    """
    config, tower, spec, processor = _read(folder, vision_tower, language_model)
    if language_model is None:
        files = weight_files(folder)
        sources = [Source(files, folder, to_ours, to_theirs)]
    else:
        path = _projector_file(folder)
        files = [path]
        sources = [
            read_language_model(language_model).weights,
            Source(files, path, _in_projector, to_theirs, "projector."),
        ]
    if not any(name.startswith(_TOWER) for name in weight_names(files)):
        if tower.weights is None:
            raise no_tower(config.tower, folder)
        sources.append(tower.weights)
    sources = [_without_layer(source, spec.vision.num_layers) for source in sources]
    model = blank_model(spec)
    fill_from_files(model, sources, device=device, dtype=dtype)
    return model.eval(), processor


def read_spec(
    folder: Path,
    vision_tower: str | Path | None = None,
    language_model: Path | None = None,
) -> LlavaSpec:
    """Read the architecture alone.

    Args and Raises: as in `load`.
    """
    return _read(folder, vision_tower, language_model)[2]


def save(folder: Path, model: Llava, processor: Processor) -> None:
    """Write a model folder that the original's code loads; weights keep their type.

    The tower's weights stand among the others if it was published, else in a folder of its own.
    SigLIP's layers that do not run are left out, as the original does.

    Raises:
        CheckpointError: the original has no form for this model or processor.
    """
    spec, images = model.spec, processor.images
    vision, weights = spec.vision, {to_theirs(name): v for name, v in stored(model).items()}
    own_images = replace(images, tiling=None)
    if images.mode == "pad" or images.tiling is not None:
        own_images = replace(own_images, mode=own_mode(model))
    full = replace(vision, feature_layer=-1)
    if not vision.has_class_token:
        full = replace(full, num_layers=vision.num_feature_layers + 1)
        idle = range(vision.num_feature_layers, vision.num_layers)
        starts = tuple(f"{_TOWER}vision_model.encoder.layers.{number}." for number in idle)
        weights = {name: v for name, v in weights.items() if not name.startswith(starts)}
    tower = _published_name(full, own_images)
    name = tower or ("clip_tower" if vision.has_class_token else "siglip_tower")
    config = config_to_original(
        spec, tower=name, is_padded=images.mode == "pad", turns=processor.prompt.template
    )
    ids = special_ids(processor)
    texts = {
        "config.json": _as_json(
            config | ids | {"torch_dtype": str(model.dtype).removeprefix("torch.")}
        ),
        "generation_config.json": _as_json(ids),
    }
    about_words = processor_files(processor, spec)
    texts |= {file: about_words[file] for file in _ABOUT_WORDS}
    if tower is None:
        inside = [theirs for theirs in weights if theirs.startswith(_TOWER)]
        apart = {theirs.removeprefix(_TOWER): weights.pop(theirs) for theirs in inside}
        _save_tower(folder / name, full, own_images, apart)
    with replacing_files(folder) as partial:
        for file, text in texts.items():
            (partial / file).write_text(text, encoding="utf-8")
        write_weights(partial / WEIGHTS, weights, {"format": "pt"})


# Reading


def _read(
    folder: Path, vision_tower: str | Path | None, language_model: Path | None
) -> tuple[OriginalConfig, NamedTower, LlavaSpec, Processor]:
    """All but the weights."""
    path = folder / "config.json"
    config = config_from_original(read_json(path), str(path))
    tower = named_tower(config.tower, folder) if vision_tower is None else asked_tower(vision_tower)
    vision = _vision(tower.spec, config)
    images = _images(tower.images, config, config.tiling(vision))
    processor = read_processor(
        folder if language_model is None else language_model,
        config.family,
        images,
        features_per_image=vision.num_features,
        max_tokens=config.decoder.max_positions,
    )
    spec = LlavaSpec(
        vision, config.decoder, config.projector, processor.image_token_id, images.tiling
    )
    return config, tower, spec, processor


def _projector_file(folder: Path) -> Path:
    """The file of a projector alone, or of what was trained whole beside an adapter."""
    path = part_file(folder, OTHER_WEIGHTS)
    return path if path.exists() else part_file(folder, PROJECTOR)


def _in_projector(name: str) -> str | None:
    """Our name of a weight of the projector; whoever reads the adapter takes the others."""
    ours = to_ours(name.removeprefix(WRAPPED))
    is_other = name.startswith(WRAPPED) and not (ours or "").startswith(_OF_PROJECTOR)
    return None if is_other else ours


def _vision(tower: VisionSpec, config: OriginalConfig) -> VisionSpec:
    """The tower as the original runs it: of SigLIP, it deletes the last layer."""
    if config.tower_width not in (None, tower.width):
        raise CheckpointError(
            f"{config.where}: mm_hidden_size is {config.tower_width}; the vision tower makes "
            f"{tower.width}. Give vision_tower the one that the model was trained with"
        )
    try:
        if tower.has_class_token:
            return replace(tower, feature_layer=config.feature_layer)
        return replace(tower, num_layers=tower.num_layers - 1, feature_layer=-1)
    except ConfigError as error:
        raise CheckpointError(f"{config.where}: mm_vision_select_layer: {error}") from error


def _images(own: ImageSettings, config: OriginalConfig, tiling: Tiling | None) -> ImageSettings:
    if tiling is not None:
        return replace(own, mode=whole_mode(tiling), tiling=tiling)
    return replace(own, mode="pad") if config.aspect == "pad" else own


def _without_layer(source: Source, number: int) -> Source:
    """A source that passes over a layer of the tower, which does not run."""
    start = f"vision_tower.layers.{number}."

    def renamed(name: str) -> str | None:
        ours = source.renamed(name)
        return None if ours is not None and ours.startswith(start) else ours

    return replace(source, renamed=renamed)


# Writing


def _published_name(full: VisionSpec, images: ImageSettings) -> str | None:
    """The id of a tower that was published with these numbers; None for another."""
    for name, tower in PUBLISHED_TOWERS.items():
        known = replace(tower.images, max_bytes=images.max_bytes, max_pixels=images.max_pixels)
        if (tower.spec, known) == (full, images):
            return name
    return None


def _save_tower(
    folder: Path, spec: VisionSpec, images: ImageSettings, weights: dict[str, Tensor]
) -> None:
    """Write a tower as `transformers` does."""
    config = vision_to_hf(spec)
    is_clip = config["model_type"] == "clip_vision_model"
    config["architectures"] = ["CLIPVisionModel" if is_clip else "SiglipVisionModel"]
    with replacing_files(folder) as partial:
        (partial / "config.json").write_text(_as_json(config))
        (partial / "preprocessor_config.json").write_text(_as_json(images_to_hf(images)))
        write_weights(partial / WEIGHTS, weights, {"format": "pt"})


def _as_json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"
