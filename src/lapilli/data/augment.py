"""Random crops, mirrors and light, with the boxes moved along."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance


@dataclass(frozen=True)
class Augmentation:
    """How far a picture may be changed.

    Attributes:
        min_area: smallest share of the picture that a crop aims at; 1 for no crops. A crop that
            would reach over an edge is cut there, and then smaller.
        is_mirrored: may be flipped left to right.
        light: largest relative change of brightness, contrast and saturation.
    """

    min_area: float = 1.0
    is_mirrored: bool = False
    light: float = 0.0


def augment(
    image: Image.Image,
    objects: tuple[dict[str, Any], ...],
    how: Augmentation,
    size_px: int,
    rng: np.random.Generator,
) -> tuple[Image.Image, tuple[dict[str, Any], ...]]:
    """Return a changed picture of `size_px` squared and its objects; those cut away are dropped."""
    width, height = image.size
    left, top, right, bottom = 0.0, 0.0, 1.0, 1.0
    if how.min_area < 1:
        area = rng.uniform(how.min_area, 1)
        ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3))) * height / width
        across, down = min(1.0, (area * ratio) ** 0.5), min(1.0, (area / ratio) ** 0.5)
        left, top = rng.uniform(0, 1 - across), rng.uniform(0, 1 - down)
        right, bottom = left + across, top + down
    image = image.resize(
        (size_px, size_px),
        Image.Resampling.BILINEAR,
        box=(left * width, top * height, right * width, bottom * height),
        reducing_gap=2.0,
    )
    is_flipped = how.is_mirrored and rng.random() < 0.5
    if is_flipped:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        if how.light and rng.random() < 0.6:
            image = enhance(image).enhance(rng.uniform(1 - how.light, 1 + how.light))
    kept = []
    for thing in objects:
        x1, x2 = ((x - left) / (right - left) for x in (thing["box"][0], thing["box"][2]))
        y1, y2 = ((y - top) / (bottom - top) for y in (thing["box"][1], thing["box"][3]))
        whole = (x2 - x1) * (y2 - y1)
        x1, y1, x2, y2 = (min(max(v, 0.0), 1.0) for v in (x1, y1, x2, y2))
        if (x2 - x1) * (y2 - y1) < 0.3 * whole:
            continue
        if is_flipped:
            x1, x2 = 1 - x2, 1 - x1
        kept.append({**thing, "box": [x1, y1, x2, y2]})
    return image, tuple(kept)
