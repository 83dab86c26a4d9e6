"""What stands beside the weights in a Hugging Face folder: words, pictures and turns."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from tokenizers import Tokenizer

from lapilli.checkpoints.hf_tiling import aspect_to_hf, pinpoints_to_hf, read_pinpoints
from lapilli.checkpoints.texts import read_json, read_text
from lapilli.config import from_dict
from lapilli.errors import CheckpointError, ConfigError
from lapilli.model.spec import LlavaSpec, VisionSpec
from lapilli.processor.builtin import jinja_source
from lapilli.processor.images import ImageSettings, Mode
from lapilli.processor.processor import Processor, PromptSettings
from lapilli.processor.tokenizer import load_tokenizer
from lapilli.tiling import Tiling

_RESAMPLES = {
    "bicubic": Image.Resampling.BICUBIC.value,
    "bilinear": Image.Resampling.BILINEAR.value,
    "lanczos": Image.Resampling.LANCZOS.value,
}
_END_OF_VICUNA = "</s>"
_VIDEO = "<video>"


def read_processor(folder: Path, spec: LlavaSpec) -> Processor:
    """Return what prepares inputs for the folder's model.

    Raises:
        CheckpointError: a file is missing or damaged, or asks for what is not supported.
    """
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    image_token = tokenizer.id_to_token(spec.image_token_id)
    if image_token is None:
        raise CheckpointError(
            f"{folder / 'tokenizer.json'}: has no token for the picture's id "
            f"{spec.image_token_id} in config.json; copy both again"
        )
    about_words = read_json(folder / "tokenizer_config.json")
    end_of_turn = special_word(about_words, "eos_token")
    if not end_of_turn:
        raise CheckpointError(
            f"{folder / 'tokenizer_config.json'}: names no eos_token; an answer would never end"
        )
    template = read_template(folder, about_words)
    if template is None and end_of_turn != _END_OF_VICUNA:
        raise CheckpointError(
            f"{folder / 'chat_template.jinja'}: missing; copy it beside config.json"
        )
    prompt = PromptSettings(
        features_per_image=spec.vision.num_features,
        image_token=image_token,
        end_of_turn=end_of_turn,
        bos_token=begin_word(tokenizer, about_words, template),
        template="vicuna_v1",
        max_tokens=spec.decoder.max_positions,
    )
    return Processor(tokenizer, read_images(folder, spec.vision, spec.tiling), prompt, template)


def processor_files(processor: Processor, spec: LlavaSpec) -> dict[str, str]:
    """Return the texts to write beside the weights, by file name.

    Raises:
        CheckpointError: the processor's template has no form in Jinja, or its pictures none there.
    """
    prompt, images, vision = processor.prompt, processor.images, spec.vision
    kind = _kind(images.tiling)
    extra_tokens = {"image_token": prompt.image_token}
    if video_ids(processor):
        extra_tokens["video_token"] = _VIDEO
    about_words = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "processor_class": f"{kind}Processor",
        "model_max_length": prompt.max_tokens,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "eos_token": prompt.end_of_turn,
        "pad_token": _pad_token(processor),
        "extra_special_tokens": extra_tokens,
    }
    if prompt.bos_token:
        about_words["bos_token"] = prompt.bos_token
    about_places: dict[str, Any] = {
        "processor_class": f"{kind}Processor",
        "image_token": prompt.image_token,
        "vision_feature_select_strategy": "default" if vision.has_class_token else "full",
    }
    num_others = int(vision.has_class_token)
    if images.tiling is not None and images.tiling.max_tiles is not None:
        about_places |= {
            "num_image_tokens": vision.num_features + num_others,
            "vision_aspect_ratio": aspect_to_hf(images.tiling),
        }
    else:
        about_places |= {
            "patch_size": vision.patch_size,
            "num_additional_image_tokens": num_others,
        }
    return {
        "tokenizer.json": processor.words.tokenizer.to_str(pretty=True),
        "tokenizer_config.json": _as_json(about_words),
        "chat_template.jinja": _template_source(processor),
        "preprocessor_config.json": _as_json(images_to_hf(images)),
        "processor_config.json": _as_json(about_places),
    }


def special_ids(processor: Processor) -> dict[str, int]:
    """Return the ids that begin, end and fill a text, by their names in configurations."""
    words, prompt = processor.words, processor.prompt
    ids = {"eos_token_id": processor.end_id, "pad_token_id": words.id(_pad_token(processor))}
    return ids | ({"bos_token_id": words.id(prompt.bos_token)} if prompt.bos_token else {})


def video_ids(processor: Processor) -> dict[str, int]:
    """Return the id of the word for a video, which LLaVA-OneVision's tokenizers have."""
    number = processor.words.tokenizer.token_to_id(_VIDEO)
    return {} if number is None else {"video_token_index": number}


# Words


def special_word(about_words: Mapping[str, Any], key: str) -> str:
    """A special token's word, which is written alone or in a table; empty for none."""
    token = about_words.get(key)
    word = token.get("content") if isinstance(token, Mapping) else token
    return word if isinstance(word, str) else ""


def begin_word(tokenizer: Tokenizer, about_words: Mapping[str, Any], template: str | None) -> str:
    """The word that begins every conversation, be it the tokenizer or the template that adds it;
    empty for none."""
    word = special_word(about_words, "bos_token")
    plain, full = (tokenizer.encode("a", add_special_tokens=adds).ids for adds in (False, True))
    is_added = about_words.get("add_bos_token")
    if is_added is None:
        is_added = full != plain and full[0] == tokenizer.token_to_id(word)
    return word if is_added or (template is not None and "bos_token" in template) else ""


def _pad_token(processor: Processor) -> str:
    has_own = processor.words.tokenizer.token_to_id("<pad>") is not None
    return "<pad>" if has_own else processor.prompt.end_of_turn


# Turns


def read_template(folder: Path, about_words: Mapping[str, Any]) -> str | None:
    """The chat template, from whichever of four places holds one."""
    path = folder / "chat_template.jinja"
    if path.exists():
        return read_text(path)
    beside = (folder / name for name in ("chat_template.json", "processor_config.json"))
    for holder in [*(read_json(path) for path in beside if path.exists()), about_words]:
        template = holder.get("chat_template")
        if isinstance(template, list):  # several, by name
            rows = [row for row in template if isinstance(row, Mapping)]
            template = {row.get("name"): row.get("template") for row in rows}.get("default")
        if isinstance(template, str):
            return template
    return None


def _template_source(processor: Processor) -> str:
    source = processor.chat_template or jinja_source(processor.prompt.template)
    if source is None:
        name = processor.prompt.template
        raise CheckpointError(f"template {name!r}: has no form in Jinja; use vicuna_v1")
    return source


# Pictures


def read_images(folder: Path, vision: VisionSpec, tiling: Tiling | None) -> ImageSettings:
    """Return how a folder's pictures are prepared for a tower.

    Raises:
        CheckpointError: a file is missing or damaged, or asks for what is not supported.
    """
    path, about = _about_images(folder)
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if not about.get(step, True):
            raise CheckpointError(f"{path}: {step} is false; supported is true")
    for key in ("image_mean", "image_std"):
        if not isinstance(about.get(key), list):
            raise CheckpointError(f"{path}: {key} is missing; give a value for each color")
    factor = about.get("rescale_factor", 1 / 255)
    if not isinstance(factor, float) or not math.isclose(factor, 1 / 255, rel_tol=1e-6):
        raise CheckpointError(f"{path}: rescale_factor is {factor!r}; supported is 1/255")
    size_px, mode = _size_and_mode(about, path)
    if size_px != vision.image_size:
        raise CheckpointError(
            f"{path}: pictures of {size_px} pixels; the tower in config.json takes "
            f"{vision.image_size}"
        )
    if tiling is not None:
        mode = whole_mode(tiling)
        pinpoints = about.get("image_grid_pinpoints")
        if pinpoints is not None and read_pinpoints(pinpoints, vision, str(path)) != (tiling.grids):
            raise CheckpointError(
                f"{path}: image_grid_pinpoints are not those of config.json; copy both again"
            )
    number = about.get("resample", _RESAMPLES["bicubic"])
    resample = next((name for name, value in _RESAMPLES.items() if value == number), number)
    values = {
        "size_px": size_px,
        "mode": mode,
        "mean": about["image_mean"],
        "std": about["image_std"],
        "resample": resample,
        "tiling": tiling,
    }
    try:
        return from_dict(ImageSettings, values, str(path))
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def _about_images(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The file that says how pictures are prepared, and what it says."""
    path = folder / "preprocessor_config.json"
    for_all = folder / "processor_config.json"  # newer versions write this one alone
    if not path.exists() and for_all.exists():
        about = read_json(for_all).get("image_processor")
        if isinstance(about, dict):
            return for_all, about
    return path, read_json(path)


def _size_and_mode(about: Mapping[str, Any], path: Path) -> tuple[int, str]:
    """Side of the square in pixels, and the way there."""
    size = about.get("size")
    side = _side(size)
    keeps_aspect = isinstance(size, int) or (isinstance(size, Mapping) and "shortest_edge" in size)
    is_cropped = about.get("do_center_crop", keeps_aspect)
    if side is None or (is_cropped and _side(about.get("crop_size", size)) != side):
        raise CheckpointError(
            f"{path}: size {size!r} and crop_size {about.get('crop_size')!r}; supported is one "
            "square"
        )
    if about.get("do_pad"):
        return side, "pad"
    if not keeps_aspect:
        return side, "squash"
    if not is_cropped:
        raise CheckpointError(f"{path}: do_center_crop is false; pictures would not be square")
    return side, "crop"


def _side(size: Any) -> int | None:
    """The side of a square, in any of the forms that it is written in; None for no square."""
    if isinstance(size, Mapping):
        edges = [size[key] for key in ("shortest_edge", "height", "width") if key in size]
        size = edges[0] if edges and edges == edges[:1] * len(edges) else None
    return size if isinstance(size, int) else None


def _kind(tiling: Tiling | None) -> str:
    """How the names of their classes begin."""
    if tiling is None:
        return "Llava"
    return "LlavaNext" if tiling.max_tiles is None else "LlavaOnevision"


def whole_mode(tiling: Tiling) -> Mode:
    """How a picture becomes one square where others are cut."""
    return "squash" if tiling.tiles_several else "pad"


def images_to_hf(images: ImageSettings) -> dict[str, Any]:
    """Return what `preprocessor_config.json` says.

    Raises:
        CheckpointError: Hugging Face's models see no pictures so.
    """
    side = {"height": images.size_px, "width": images.size_px}
    is_crop, is_padded = images.mode == "crop", images.mode == "pad"
    kind = f"{_kind(images.tiling)}ImageProcessor"
    tiles: dict[str, Any] = {}
    if images.tiling is not None:
        if images.tiling.tiles_several is False and not is_padded:
            raise CheckpointError(
                f"image mode {images.mode!r}: LLaVA-OneVision pads pictures that it does not cut; "
                "use pad"
            )
        is_crop, is_padded = False, True  # there, padding evens out the numbers of tiles
        tiles["image_grid_pinpoints"] = pinpoints_to_hf(images.tiling)
    elif not is_padded:  # only LLaVA's own class knows how to pad
        kind = "CLIPImageProcessor"
    return {
        "image_processor_type": kind,
        "processor_class": f"{_kind(images.tiling)}Processor",
        "do_convert_rgb": True,
        "do_pad": is_padded,
        "do_resize": True,
        "size": {"shortest_edge": images.size_px} if is_crop else side,
        "do_center_crop": is_crop,
        "crop_size": side,
        "resample": _RESAMPLES[images.resample],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(images.mean),
        "image_std": list(images.std),
        **tiles,
    }


def _as_json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"
