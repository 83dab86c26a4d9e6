"""What models are built of: a vision tower and a language model in folders of their own, as
`transformers` writes them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lapilli.checkpoints import hf_names, original_names
from lapilli.checkpoints.hf_processor import read_images
from lapilli.checkpoints.hf_spec import decoder_from_hf, vision_from_hf
from lapilli.checkpoints.shards import weight_files
from lapilli.checkpoints.texts import read_json
from lapilli.checkpoints.weights import Source
from lapilli.errors import CheckpointError
from lapilli.model.spec import DecoderSpec, VisionSpec
from lapilli.processor.images import ImageSettings

_TOWER = "vision_tower."
_LANGUAGE_MODEL = "language_model."

_OF_TEXT = ("text_model.", "text_projection.", "visual_projection.", "logit_scale", "logit_bias")
"""What CLIP and SigLIP hold beside the tower."""


@dataclass(frozen=True)
class Tower:
    """A vision tower on the disk.

    Attributes:
        images: how pictures are prepared for it.
        weights: its files, for `lapilli.checkpoints.weights.fill_from_files`.
    """

    spec: VisionSpec
    images: ImageSettings
    weights: Source


@dataclass(frozen=True)
class LanguageModel:
    """A language model on the disk; its words are in `tokenizer.json` beside it.

    Attributes:
        weights: its files, for `lapilli.checkpoints.weights.fill_from_files`.
    """

    spec: DecoderSpec
    weights: Source


def read_tower(folder: Path, feature_layer: int) -> Tower:
    """Read a CLIP or SigLIP folder, of the tower alone or with the text model beside it.

    No weight is read.

    Args:
        feature_layer: as in `VisionSpec`.

    Raises:
        CheckpointError: a file is missing or damaged, or asks for what is not supported.
    """
    path = folder / "config.json"
    spec = vision_from_hf(_own_section(read_json(path), path), feature_layer, str(path))
    images = read_images(folder, spec, None)
    weights = Source(weight_files(folder), folder, _tower_name, _name_in_tower, _TOWER)
    return Tower(spec, images, weights)


def read_language_model(folder: Path) -> LanguageModel:
    """Read the folder of a Llama, Mistral or Qwen2 model; no weight is read.

    Raises:
        CheckpointError: a file is missing or damaged, or asks for what is not supported.
    """
    path = folder / "config.json"
    spec = decoder_from_hf(read_json(path), str(path))
    source = Source(
        weight_files(folder),
        folder,
        original_names.to_ours,
        original_names.to_theirs,
        _LANGUAGE_MODEL,
    )
    return LanguageModel(spec, source)


def _own_section(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """What a configuration says of the tower, be it all or a table in it."""
    kind = config.get("model_type")
    if kind not in ("clip", "siglip"):
        return config
    section = config.get("vision_config")
    if not isinstance(section, dict):
        raise CheckpointError(f"{path}: vision_config is missing; copy config.json again")
    return {"model_type": f"{kind}_vision_model", **section}


def _tower_name(name: str) -> str | None:
    return None if name.startswith(_OF_TEXT) else hf_names.to_ours(_TOWER + name)


def _name_in_tower(name: str) -> str:
    return hf_names.to_theirs(name).removeprefix(_TOWER)
