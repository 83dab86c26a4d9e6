"""Pictures as a vision tower reads them: squares of normalized numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from PIL import Image

from lapilli.errors import ConfigError
from lapilli.processor.opening import MAX_BYTES, MAX_PIXELS
from lapilli.tiling import Tiling

# S side of the square that the tower reads, in pixels, M views of a picture

Mode = Literal["pad", "crop", "squash"]

_RESAMPLES = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
}
_MAX_ASPECT = 64
"""A strip longer than this would be enlarged to a huge picture, only to be cropped."""


@dataclass(frozen=True)
class ImageSettings:
    """How a picture becomes one square of numbers, or several.

    Attributes:
        size_px: side of the square.
        mode: "pad" adds borders of the mean color (LLaVA-1.5), "crop" resizes the shorter side
            and cuts out the middle (CLIP), "squash" resizes both sides (SigLIP). A picture that
            is cut is always squashed to be seen as a whole.
        mean: per channel, subtracted from values in 0-1.
        std: per channel, divided by afterwards.
        resample: the filter used for resizing.
        max_bytes: the largest file or upload that is read.
        max_pixels: the largest picture that is decoded.
        tiling: how pictures are cut; None for models that do not.

    Raises:
        ConfigError: a value is out of range.
    """

    size_px: int
    mode: Mode
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resample: Literal["bicubic", "bilinear", "lanczos"] = "bicubic"
    max_bytes: int = MAX_BYTES
    max_pixels: int = MAX_PIXELS
    tiling: Tiling | None = None

    def __post_init__(self) -> None:
        if self.mode not in ("pad", "crop", "squash"):
            raise ConfigError(f"image mode {self.mode!r} is unknown. Use pad, crop or squash.")
        if self.resample not in _RESAMPLES:
            raise ConfigError(
                f"resample {self.resample!r} is unknown. Use {', '.join(_RESAMPLES)}."
            )
        if min(self.size_px, self.max_bytes, self.max_pixels) < 1:
            raise ConfigError("size_px, max_bytes and max_pixels must be positive. Raise them.")
        if [len(self.mean), len(self.std)] != [3, 3]:
            raise ConfigError("mean and std need three values each. Correct them.")
        if not (all(map(math.isfinite, (*self.mean, *self.std))) and min(self.std) > 0):
            raise ConfigError("mean and std must be finite, std above 0. Correct them.")
        if self.tiling is not None and self.tiling.tile_px != self.size_px:
            raise ConfigError(
                f"tiles of {self.tiling.tile_px} pixels, size_px {self.size_px}. Make them equal."
            )


def to_views(image: Image.Image, settings: ImageSettings, *, is_cut: bool) -> np.ndarray:
    """Return what the tower sees of an RGB picture.

    Args:
        is_cut: add tiles, as `settings.tiling` says.

    Returns:
        (M, 3, S, S) float32: the whole, then the tiles row by row.
    """
    if not is_cut:
        return to_pixels(image, settings)[None]
    assert settings.tiling is not None
    return normalize(_whole_and_tiles(image, settings, settings.tiling), settings)


def to_uint8(image: Image.Image, settings: ImageSettings) -> np.ndarray:
    """Resize an RGB picture to the square of the tower, before normalization.

    Returns:
        (3, S, S) uint8, fit for a cache.
    """
    size, resample = settings.size_px, _RESAMPLES[settings.resample]
    if settings.mode == "pad":
        color = tuple(int(value * 255) for value in settings.mean)
        image = _pad_to_square(_tame_for_pad(image, size), color)
        image = image.resize((size, size), resample)
    elif settings.mode == "crop":
        image = _resize_and_crop(_tame_for_crop(image), size, resample)
    else:
        image = image.resize((size, size), resample)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))  # (3, S, S)


def to_pixels(image: Image.Image, settings: ImageSettings) -> np.ndarray:
    """Resize and normalize an RGB picture as `transformers` does with Pillow.

    Returns:
        (3, S, S) float32.
    """
    return normalize(to_uint8(image, settings), settings)


def normalize(pixels: np.ndarray, settings: ImageSettings) -> np.ndarray:
    """Turn what `to_uint8` returned into what `to_pixels` returns.

    Args:
        pixels: (3, S, S) uint8, or a batch (..., 3, S, S).

    Returns:
        float32 of the same shape.
    """
    table = _normalization_table(settings.mean, settings.std)
    channels = np.arange(3).reshape(3, 1, 1)
    result: np.ndarray = table[channels, pixels]
    return result


@lru_cache(maxsize=16)
def _normalization_table(
    mean: tuple[float, float, float], std: tuple[float, float, float]
) -> np.ndarray:
    """(3, 256) float32: a byte has so few values that looking them up is exact and fastest."""
    unit = (np.arange(256) * (1 / 255)).astype(np.float32)
    center, spread = (np.array(v, dtype=np.float32).reshape(3, 1) for v in (mean, std))
    table: np.ndarray = (unit - center) / spread
    return table


def _whole_and_tiles(image: Image.Image, settings: ImageSettings, tiling: Tiling) -> np.ndarray:
    """(M, 3, S, S) uint8; around the picture in its grid is black."""
    side, resample = settings.size_px, _RESAMPLES[settings.resample]
    size = image.height, image.width
    (height, width), (full_height, full_width) = tiling.resized(size), tiling.canvas(size)
    canvas = Image.new("RGB", (full_width, full_height))
    resized = image.resize((width, height), resample)
    canvas.paste(resized, ((full_width - width) // 2, (full_height - height) // 2))
    whole = np.asarray(image.resize((side, side), resample))[None]  # (1, S, S, 3)
    rows, columns = tiling.grid(size)
    tiles = np.asarray(canvas).reshape(rows, side, columns, side, 3).swapaxes(1, 2)
    views = np.concatenate([whole, tiles.reshape(-1, side, side, 3)])
    return np.ascontiguousarray(views.transpose(0, 3, 1, 2))


def _pad_to_square(image: Image.Image, color: tuple[int, ...]) -> Image.Image:
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    canvas = Image.new("RGB", (side, side), color)
    canvas.paste(image, ((side - width) // 2, (side - height) // 2))
    return canvas


def _resize_and_crop(image: Image.Image, size: int, resample: Image.Resampling) -> Image.Image:
    width, height = image.size
    short = min(width, height)
    width, height = int(size * width / short), int(size * height / short)
    left, top = (width - size) // 2, (height - size) // 2
    return image.resize((width, height), resample).crop((left, top, left + size, top + size))


def _tame_for_pad(image: Image.Image, size: int) -> Image.Image:
    """Shrink a strip whose padded square would exceed the limit on pixels."""
    side = max(image.size)
    if side * side <= MAX_PIXELS:
        return image
    target = min(side, 4 * size)  # the square is made in a second step; no detail of it is lost
    width, height = (max(1, round(length * target / side)) for length in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _tame_for_crop(image: Image.Image) -> Image.Image:
    """Drop the far ends of a strip, which the crop would drop after enlarging them."""
    width, height = image.size
    reach = min(width, height) * _MAX_ASPECT
    if max(width, height) <= reach:
        return image
    keep_width, keep_height = min(width, reach), min(height, reach)
    left, top = (width - keep_width) // 2, (height - keep_height) // 2
    return image.crop((left, top, left + keep_width, top + keep_height))
