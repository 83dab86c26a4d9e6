"""The eleven color names as ranges of RGB, and how far two colors differ."""

from __future__ import annotations

import colorsys
from functools import lru_cache

import numpy as np

Rgb = tuple[int, int, int]

CLEAR_DIFFERENCE = 25.0
"""CIE76 distance from which a shape stands out from what is behind it."""

_ANCHORS: dict[str, tuple[str, ...]] = {
    "red": ("ff0000", "e6194b", "d62728", "dc143c", "e41a1c", "e74c3c", "c80000"),
    "green": ("00ff00", "008000", "2ca02c", "3cb44b", "228b22", "32cd32", "4daf4a", "00c800"),
    "blue": ("0000ff", "1f77b4", "4363d8", "4169e1", "1e90ff", "000080", "377eb8", "0000c8"),
    "yellow": ("ffff00", "ffe119", "ffd700", "f1c40f", "ffff33", "ffeb3b", "ffdc00"),
    "purple": ("800080", "9467bd", "911eb4", "663399", "8a2be2", "984ea3", "9b59b6", "9370db"),
    "orange": ("ffa500", "ff7f0e", "f58231", "ff8c00", "ff7f00", "ff9800", "e67e22"),
    "pink": ("ffc0cb", "ff69b4", "e377c2", "ff1493", "f781bf", "ffb6c1", "ff96b4"),
    "brown": ("a52a2a", "8b4513", "8c564b", "9a6324", "a0522d", "a65628", "795548", "654321"),
    "black": ("000000", "111111", "141414", "1a1a1a"),
    "white": ("ffffff", "fafafa", "f5f5f5"),
    "gray": ("808080", "7f7f7f", "a9a9a9", "999999", "696969", "8c8c8c", "b0b0b0"),
}
"""What drawing programs call by these names: CSS, Matplotlib, ColorBrewer, Material and others."""

_Range = tuple[float, float]
_RANGES: dict[str, tuple[tuple[_Range, _Range, _Range], ...]] = {
    "red": (((-14, 5), (0.8, 1.0), (0.76, 1.0)),),
    "green": (((95, 148), (0.5, 1.0), (0.42, 1.0)),),
    "blue": (((204, 240), (0.62, 1.0), (0.5, 1.0)), ((202, 220), (0.42, 0.62), (0.8, 1.0))),
    "yellow": (((48, 61), (0.65, 1.0), (0.92, 1.0)),),
    "purple": (((264, 290), (0.45, 1.0), (0.48, 0.9)), ((290, 301), (0.5, 1.0), (0.4, 0.68))),
    "orange": (((22, 39), (0.78, 1.0), (0.9, 1.0)),),
    "pink": (((316, 351), (0.25, 0.58), (0.9, 1.0)), ((322, 334), (0.58, 0.95), (0.94, 1.0))),
    "brown": (((10, 34), (0.5, 0.9), (0.36, 0.64)),),
    "black": (((0, 360), (0.0, 0.3), (0.0, 0.12)),),
    "white": (((0, 360), (0.0, 0.03), (0.97, 1.0)),),
    "gray": (((0, 360), (0.0, 0.05), (0.4, 0.72)),),
}
"""Hue in degrees, saturation and value in which nobody doubts the name."""


def _from_hex(text: str) -> Rgb:
    return int(text[:2], 16), int(text[2:4], 16), int(text[4:], 16)


ANCHORS: dict[str, tuple[Rgb, ...]] = {
    name: tuple(_from_hex(text) for text in texts) for name, texts in _ANCHORS.items()
}


def sample_color(rng: np.random.Generator, name: str) -> Rgb:
    """Return a color that a person calls `name`: a known program's own, or one in its range."""
    if rng.random() < 0.4:
        anchors = ANCHORS[name]
        return anchors[int(rng.integers(len(anchors)))]
    ranges = _RANGES[name]
    hue, saturation, value = ranges[0 if rng.random() < 0.7 else len(ranges) - 1]
    u, v, w = rng.random(3)
    return from_hsv(
        hue[0] + u * (hue[1] - hue[0]),
        saturation[0] + v * (saturation[1] - saturation[0]),
        value[0] + w * (value[1] - value[0]),
    )


def from_hsv(hue_degrees: float, saturation: float, value: float) -> Rgb:
    """Return RGB of a hue in degrees (any turn), saturation and value in 0-1."""
    r, g, b = colorsys.hsv_to_rgb(hue_degrees / 360 % 1.0, saturation, value)
    return round(r * 255), round(g * 255), round(b * 255)


def blend(color: Rgb, other: Rgb, share: float) -> Rgb:
    """Return `color` moved by `share` (0-1) of the way to `other`."""
    r, g, b = (round(c + (o - c) * share) for c, o in zip(color, other, strict=True))
    return r, g, b


def shade(color: Rgb, amount: float) -> Rgb:
    """Return `color` made darker (negative amount) or lighter (positive), amount in -1..1."""
    return blend(color, (255, 255, 255) if amount > 0 else (0, 0, 0), abs(amount))


def name_of(color: Rgb) -> str | None:
    """Return the one name that `color` clearly has, or None between names."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(c / 255 for c in color))
    degrees = hue * 360
    for name, ranges in _RANGES.items():
        for hues, saturations, values in ranges:
            inside_hue = hues[0] <= degrees <= hues[1] or hues[0] <= degrees - 360 <= hues[1]
            if (
                inside_hue
                and saturations[0] <= saturation <= saturations[1]
                and values[0] <= value <= values[1]
            ):
                return name
    return None


@lru_cache(maxsize=4096)
def _lab(color: Rgb) -> tuple[float, float, float]:
    r, g, b = (c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color)
    xyz = (
        (0.4124 * r + 0.3576 * g + 0.1805 * b) / 0.9505,
        0.2126 * r + 0.7152 * g + 0.0722 * b,
        (0.0193 * r + 0.1192 * g + 0.9505 * b) / 1.089,
    )
    fx, fy, fz = (t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in xyz)
    return 116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)


def difference(color: Rgb, other: Rgb) -> float:
    """Return the CIE76 distance of two colors in Lab; about 2 is just visible, black-white 100."""
    a, b = _lab(color), _lab(other)
    return float(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) ** 0.5)
