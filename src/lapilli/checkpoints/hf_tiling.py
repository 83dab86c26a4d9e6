"""How pictures are cut, in a Hugging Face `config.json`: what sets LLaVA-NeXT and LLaVA-OneVision
apart from LLaVA-1.5."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lapilli.errors import CheckpointError, ConfigError
from lapilli.model.spec import VisionSpec
from lapilli.tiling import Tiling, grids_of

_PINPOINTS: dict[str, list[list[int]]] = {
    "llava_next": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
    "llava_onevision": [
        [384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)
    ],
}
_ASPECT = "anyres_max_9"
"""What a configuration means that leaves `vision_aspect_ratio` out."""


def tiling_from_hf(config: Mapping[str, Any], vision: VisionSpec, where: str) -> Tiling | None:
    """Return how the pictures of a configuration's `model_type` are cut; None for LLaVA-1.5.

    Raises:
        CheckpointError: a key is of the wrong type, or asks for what is not supported.
    """
    kind = config["model_type"]
    if kind not in _PINPOINTS:
        return None
    pinpoints = config.get("image_grid_pinpoints")
    grids = read_pinpoints(_PINPOINTS[kind] if pinpoints is None else pinpoints, vision, where)
    max_tiles = None if kind == "llava_next" else _max_tiles(config, where)
    try:
        return Tiling(vision.image_size, vision.grid, grids, max_tiles, kind == "llava_next")
    except ConfigError as error:
        raise CheckpointError(f"{where}: image_grid_pinpoints: {error}") from error


def read_pinpoints(pinpoints: Any, vision: VisionSpec, where: str) -> tuple[tuple[int, int], ...]:
    """Return the grids in a list of resolutions, which stands in two files.

    Raises:
        CheckpointError: the list is none, or its resolutions are not made of tiles.
    """
    if not _is_list(pinpoints) or not all(_is_list(pair) for pair in pinpoints):
        raise CheckpointError(
            f"{where}: image_grid_pinpoints is {pinpoints!r}; give a list of heights and widths"
        )
    try:
        return grids_of(pinpoints, vision.image_size, "hf")
    except ConfigError as error:
        raise CheckpointError(f"{where}: image_grid_pinpoints: {error}") from error


def tiling_to_hf(tiling: Tiling | None) -> dict[str, Any]:
    """Return the part of `config.json` that names the kind of model, and how it cuts pictures.

    Raises:
        CheckpointError: no model of Hugging Face's cuts so.
    """
    if tiling is None:
        return {"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava"}
    if tiling.parity != "hf":
        raise CheckpointError(
            f"tiling with parity {tiling.parity!r}: Hugging Face's models count otherwise; use 'hf'"
        )
    pinpoints = {"image_grid_pinpoints": pinpoints_to_hf(tiling)}
    if tiling.max_tiles is None and tiling.tiles_several:
        kind = {"architectures": ["LlavaNextForConditionalGeneration"], "model_type": "llava_next"}
        return kind | pinpoints
    if tiling.max_tiles is not None and not tiling.tiles_several:
        return {
            "architectures": ["LlavaOnevisionForConditionalGeneration"],
            "model_type": "llava_onevision",
            "vision_aspect_ratio": aspect_to_hf(tiling),
            **pinpoints,
        }
    raise CheckpointError(
        "a tiling between LLaVA-NeXT and LLaVA-OneVision: Hugging Face has no form for it; use "
        "max_tiles or tiles_several, not both"
    )


def pinpoints_to_hf(tiling: Tiling) -> list[list[int]]:
    """Return the grids as heights and widths in pixels."""
    return [[rows * tiling.tile_px, columns * tiling.tile_px] for rows, columns in tiling.grids]


def aspect_to_hf(tiling: Tiling) -> str:
    """Return the name of a shrinking tiling."""
    return f"anyres_max_{tiling.max_tiles}"


def _max_tiles(config: Mapping[str, Any], where: str) -> int:
    aspect = config.get("vision_aspect_ratio", _ASPECT)
    match = re.fullmatch(r"anyres_max_([1-9]\d{0,3})", aspect) if isinstance(aspect, str) else None
    if match is None:
        raise CheckpointError(
            f"{where}: vision_aspect_ratio is {aspect!r}; supported is anyres_max_ and a number"
        )
    return int(match[1])


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
