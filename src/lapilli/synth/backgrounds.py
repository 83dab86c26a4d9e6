"""What lies behind drawn things: flat tones, gradients, noise and crops of photographs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from lapilli.synth.palette import (
    CLEAR_DIFFERENCE,
    Rgb,
    blend,
    difference,
    from_hsv,
    name_of,
    sample_color,
)
from lapilli.synth.symbols import COLORS

_KINDS: tuple[Literal["flat", "linear", "radial"], ...] = ("flat", "linear", "radial")


@dataclass(frozen=True, slots=True)
class Tones:
    """A background before it is rendered.

    Attributes:
        kind: one tone, four corners blended, or from the middle (first) outwards (second).
        colors: one, four (top left, top right, bottom left, bottom right) or two tones.
    """

    kind: Literal["flat", "linear", "radial"]
    colors: tuple[Rgb, ...]

    @property
    def word(self) -> str | None:
        """The color name that all of it has, or None."""
        names = {name_of(color) for color in self.colors}
        return names.pop() if len(names) == 1 else None

    def shows(self, name: str, color: Rgb) -> bool:
        """Whether a thing of this color and name stands out everywhere on the background."""
        first, last = self.colors[0], self.colors[-1]
        tones = {*self.colors, blend(first, last, 0.5)}
        return all(
            name_of(tone) != name and difference(tone, color) >= CLEAR_DIFFERENCE for tone in tones
        )

    def render(self, side_px: int) -> Image.Image:
        """Return the background as an RGB picture."""
        if self.kind == "flat":
            return Image.new("RGB", (side_px, side_px), self.colors[0])
        if self.kind == "linear":
            corners = Image.new("RGB", (2, 2))
            corners.putdata(self.colors)
            # The box leaves out the outer half pixels, beyond which there is nothing to blend.
            box = (0.5, 0.5, 1.5, 1.5)
            return corners.resize((side_px, side_px), Image.Resampling.BILINEAR, box=box)
        falloff = Image.radial_gradient("L").resize((side_px, side_px), Image.Resampling.BILINEAR)
        middle, rim = (Image.new("RGB", (side_px, side_px), color) for color in self.colors)
        return Image.composite(rim, middle, falloff)


def sample_tones(rng: np.random.Generator) -> Tones:
    """Return a flat background or a gradient: light, dark or colored, light ones most often."""
    base = _sample_tone(rng)
    kind = _KINDS[int(np.searchsorted((0.55, 0.9), rng.random()))]
    if kind == "flat":
        return Tones("flat", (base,))
    other = blend(base, _sample_tone(rng), 0.15 + 0.45 * float(rng.random()))
    if kind == "radial":
        return Tones("radial", (base, other))
    across = int(rng.integers(3))
    middle = blend(base, other, 0.5)
    corners = (
        (base, other, base, other),
        (base, base, other, other),
        (base, middle, middle, other),
    )
    return Tones("linear", corners[across])


def _sample_tone(rng: np.random.Generator) -> Rgb:
    kind, hue, u, v = rng.random(4).tolist()
    if kind < 0.28:
        return from_hsv(hue * 360, 0.03 * u, 0.95 + 0.05 * v)
    if kind < 0.40:
        return from_hsv(hue * 360, 0.04 * u, 0.76 + 0.18 * v)
    if kind < 0.62:
        return from_hsv(hue * 360, 0.08 + 0.24 * u, 0.84 + 0.16 * v)
    if kind < 0.74:
        return from_hsv(hue * 360, 0.6 * u, 0.04 + 0.22 * v)
    if kind < 0.90:
        return from_hsv(hue * 360, 0.15 + 0.45 * u, 0.35 + 0.45 * v)
    return sample_color(rng, COLORS[int(rng.integers(len(COLORS)))])


def crop_background(
    rng: np.random.Generator, pictures: Sequence[Image.Image], side_px: int
) -> Image.Image:
    """Return a random square part of a random picture, sometimes faded toward one tone."""
    picture = pictures[int(rng.integers(len(pictures)))]
    side = min(picture.size) * (0.5 + 0.5 * float(rng.random()))
    left = (picture.width - side) * float(rng.random())
    top = (picture.height - side) * float(rng.random())
    crop = picture.convert("RGB").resize(
        (side_px, side_px), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side)
    )
    if rng.random() < 0.5:
        tone = Image.new("RGB", crop.size, _sample_tone(rng))
        crop = Image.blend(crop, tone, 0.2 + 0.5 * float(rng.random()))
    return crop


def add_noise(rng: np.random.Generator, picture: Image.Image, strength: float) -> Image.Image:
    """Return the picture with even noise of up to +-`strength` (0-1) of the range added."""
    pixels = np.asarray(picture).astype(np.int16)
    height, width, channels = pixels.shape
    depth = channels if rng.random() < 0.5 else 1
    noise = np.frombuffer(rng.bytes(height * width * depth), np.uint8).astype(np.int16) - 128
    scaled = (noise * round(strength * 256) >> 7).reshape(height, width, depth)
    return Image.fromarray(np.clip(pixels + scaled, 0, 255).astype(np.uint8))
