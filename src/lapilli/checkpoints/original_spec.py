"""The architecture in a `config.json` of the code that LLaVA was published with."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lapilli.checkpoints.hf_spec import decoder_from_hf, decoder_to_hf
from lapilli.checkpoints.sections import Section
from lapilli.errors import CheckpointError, ConfigError
from lapilli.model.spec import DecoderSpec, LlavaSpec, Projector, VisionSpec
from lapilli.tiling import Tiling, grids_of

Family = Literal["llama", "mistral", "qwen2"]

ARCHITECTURES: dict[str, Family] = {
    "LlavaLlamaForCausalLM": "llama",
    "LlavaMistralForCausalLM": "mistral",
    "LlavaQwenForCausalLM": "qwen2",
}
"""Their classes, and the language models in them."""

_MODEL_TYPES: dict[Family, str] = {
    "llama": "llava_llama",
    "mistral": "llava_mistral",
    "qwen2": "llava_qwen",
}
_DEFAULTS = {
    "mm_projector_type": "linear",
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "mm_patch_merge_type": "flat",
    "image_aspect_ratio": "square",
}
"""What the original's code takes where a key is left out."""

_ANYRES = re.compile(r"anyres(?:_max_([1-9]\d{0,3}))?")
_RANGE = re.compile(
    r"\((\d{1,3})x(\d{1,3})\)(?:,(?:\.\.\.|\(\d{1,3}x\d{1,3}\)))*,\((\d{1,3})x(\d{1,3})\)"
)
_PAIR = re.compile(r"[(\[](\d{1,5}),(\d{1,5})[)\]]")
_PAIRS = re.compile(rf"\[?{_PAIR.pattern}(?:,{_PAIR.pattern})*\]?")


@dataclass(frozen=True)
class OriginalConfig:
    """What the configuration says; the tower's own numbers stand elsewhere.

    Attributes:
        tower: a folder, or an id on the hub.
        feature_layer: as in `VisionSpec`, for a CLIP tower; of SigLIP, all layers but the last run.
        aspect: "square", "pad", or a name of cutting.
        pinpoints: resolutions as they are written; None where pictures are not cut.
        where: the file, for messages.
    """

    family: Family
    decoder: DecoderSpec
    projector: Projector
    tower: str
    feature_layer: int
    aspect: str
    pinpoints: Any
    tower_width: int | None
    where: str

    def tiling(self, vision: VisionSpec) -> Tiling | None:
        """Return how pictures are cut for a tower.

        Raises:
            CheckpointError: the resolutions are none, or not made of tiles.
        """
        match = _ANYRES.fullmatch(self.aspect)
        if match is None:
            return None
        max_tiles = int(match[1]) if match[1] else None
        pairs = _read_pinpoints(self.pinpoints, vision.image_size, self.where)
        try:
            grids = grids_of(pairs, vision.image_size, "original")
            return Tiling(
                vision.image_size, vision.grid, grids, max_tiles, max_tiles is None, "original"
            )
        except ConfigError as error:
            raise CheckpointError(f"{self.where}: image_grid_pinpoints: {error}") from error


def is_original(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is one of the original code's, by its class and its keys."""
    return _family(config) is not None or "mm_vision_tower" in config


def _family(config: Mapping[str, Any]) -> Family | None:
    """The language model by the first class that is known; None where none is."""
    names = config.get("architectures")
    if not isinstance(names, list):
        return None
    known = (ARCHITECTURES.get(name) for name in names if isinstance(name, str))
    return next((family for family in known if family is not None), None)


def config_from_original(config: Mapping[str, Any], where: str) -> OriginalConfig:
    """Return what a configuration says.

    Args:
        config: what `config.json` holds.
        where: the file, for messages.

    Raises:
        CheckpointError: a key is missing, of the wrong type, or asks for what is not supported.
    """
    top = Section(config, _DEFAULTS, where)
    family = _family(config)
    if family is None:
        names, known = config.get("architectures"), " or ".join(ARCHITECTURES)
        raise CheckpointError(f"{where}: architectures is {names!r}; supported is {known}")
    top.expect("mm_projector_type", "linear", "mlp2x_gelu")
    top.expect("mm_vision_select_feature", "patch")
    top.expect("mm_use_im_start_end", False, None)
    top.expect("mm_use_im_patch_token", False, None)
    top.expect("mm_resampler_type", None)
    tower = config.get("mm_vision_tower", config.get("vision_tower"))
    if not isinstance(tower, str) or not tower:
        raise CheckpointError(f"{where}: mm_vision_tower is {tower!r}; give a folder or an id")
    aspect = top["image_aspect_ratio"] or "square"
    is_cut = isinstance(aspect, str) and _ANYRES.fullmatch(aspect) is not None
    if not is_cut:
        top.expect("image_aspect_ratio", "square", "pad", None)
    # Of one view that is not cut, "flat" and "spatial" are the same.
    top.expect(
        "mm_patch_merge_type", *(("spatial_unpad",) if is_cut else ("flat", "spatial", None))
    )
    return OriginalConfig(
        family=family,
        decoder=decoder_from_hf({**config, "model_type": family}, where),
        projector=top["mm_projector_type"],
        tower=tower,
        feature_layer=top.integer("mm_vision_select_layer"),
        aspect=aspect,
        pinpoints=config.get("image_grid_pinpoints") if is_cut else None,
        tower_width=top.count("mm_hidden_size") if "mm_hidden_size" in config else None,
        where=where,
    )


def config_to_original(
    spec: LlavaSpec, *, tower: str, is_padded: bool, turns: str
) -> dict[str, Any]:
    """Return what `config.json` says of a model.

    Args:
        tower: its folder or id.
        is_padded: pictures are padded to a square.
        turns: the name of the model's template.
    """
    decoder = decoder_to_hf(spec.decoder)
    family: Family = "llama"
    if spec.decoder.has_qkv_bias:
        family = "qwen2"
    elif spec.decoder.sliding_window is not None or turns == "mistral_instruct":
        family = "mistral"
        decoder["sliding_window"] = spec.decoder.sliding_window
    name = next(name for name, known in ARCHITECTURES.items() if known == family)
    config = {
        **decoder,
        "architectures": [name],
        "model_type": _MODEL_TYPES[family],
        "mm_vision_tower": tower,
        "mm_hidden_size": spec.vision.width,
        "mm_projector_type": spec.projector,
        "mm_vision_select_layer": spec.vision.feature_layer if spec.vision.has_class_token else -2,
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "tokenizer_model_max_length": spec.decoder.max_positions,
        "unfreeze_mm_vision_tower": True,  # or else that code passes over a tower in the weights
        "use_mm_proj": True,
    }
    if spec.tiling is None:
        aspect = "pad" if is_padded else "square"
        return config | {"image_aspect_ratio": aspect, "mm_patch_merge_type": "flat"}
    tiling = spec.tiling.following("original")
    aspect = "anyres" if tiling.max_tiles is None else f"anyres_max_{tiling.max_tiles}"
    pinpoints = [
        [columns * tiling.tile_px, rows * tiling.tile_px] for rows, columns in tiling.grids
    ]
    return config | {
        "image_aspect_ratio": aspect,
        "mm_patch_merge_type": "spatial_unpad",
        "image_grid_pinpoints": pinpoints,
    }


def _read_pinpoints(written: Any, tile_px: int, where: str) -> list[list[int]]:
    """Widths and heights in pixels: a list, a list in a string, or the range of grids "(1x1),...,
    (6x6)"."""
    if isinstance(written, str):
        text = re.sub(r"\s", "", written)
        if match := _RANGE.fullmatch(text):
            low, high = (int(match[1]), int(match[2])), (int(match[3]), int(match[4]))
            return [
                [tile_px * first, tile_px * second]
                for first in range(low[0], high[0] + 1)
                for second in range(low[1], high[1] + 1)
            ]
        if _PAIRS.fullmatch(text):
            return [[int(first), int(second)] for first, second in _PAIR.findall(text)]
    elif isinstance(written, Sequence) and all(isinstance(pair, list) for pair in written):
        return list(written)
    raise CheckpointError(
        f"{where}: image_grid_pinpoints is {written!r}; give a list of widths and heights, or a "
        'range such as "(1x1),...,(6x6)"'
    )
