"""Putting one shape onto a canvas: filled, outlined, edged, rimmed or textured."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from lapilli.synth.palette import Rgb, difference, shade
from lapilli.synth.shapes import Form, Mask, Way, draw_edge_mask, draw_mask

Style = Literal["filled", "outlined", "edged", "rimmed", "striped", "dotted", "grainy"]
STYLES: tuple[Style, ...] = ("outlined", "edged", "striped", "dotted", "grainy")
"""What the hard grade chooses from; "rimmed" is for places where the color alone would sink."""


def paint(
    rng: np.random.Generator,
    canvas: Image.Image,
    form: Form,
    color: Rgb,
    style: Style,
    center: tuple[float, float],
    radius_px: float,
    way: Way,
) -> Mask:
    """Paint a shape onto `canvas` and return the mask of all that it covers."""
    if style == "outlined":
        width_px = radius_px * (0.16 + 0.14 * float(rng.random()))
        line = draw_edge_mask(form, center, radius_px, max(width_px, canvas.width / 64))
        _paste(canvas, color, line)
        return line
    mask = draw_mask(form, center, radius_px, way)
    if style in ("striped", "dotted", "grainy"):
        _paste(canvas, _texture(rng, style, color, mask.image.size, radius_px), mask)
        return mask
    _paste(canvas, color, mask)
    if style in ("edged", "rimmed"):
        width_px = max(radius_px * (0.08 + 0.06 * float(rng.random())), canvas.width / 128)
        edge = shade(color, -0.55 if difference(color, (0, 0, 0)) > 45 else 0.55)
        if style == "rimmed":
            edge = (255, 255, 255) if difference(color, (255, 255, 255)) > 50 else (0, 0, 0)
        _paste(canvas, edge, draw_edge_mask(form, center, radius_px, width_px))
    return mask


def _paste(canvas: Image.Image, ink: Rgb | Image.Image, mask: Mask) -> None:
    width, height = mask.image.size
    box = (mask.left, mask.top, mask.left + width, mask.top + height)
    canvas.paste(ink, box, mask.image)


def _texture(
    rng: np.random.Generator, style: Style, color: Rgb, size: tuple[int, int], radius_px: float
) -> Image.Image:
    """Return a swatch of two shades of one color, close enough to keep the color's name."""
    brightness = difference(color, (0, 0, 0))
    depth = -0.14 if brightness > 90 else -0.3 if brightness > 45 else 0.2
    other = shade(color, depth * (0.6 + 0.4 * float(rng.random())))
    if style == "grainy":
        grain = np.frombuffer(rng.bytes(size[0] * size[1]), np.uint8).reshape(size[1], size[0])
        return Image.composite(
            Image.new("RGB", size, color), Image.new("RGB", size, other), Image.fromarray(grain)
        )
    swatch = Image.new("RGB", size, color)
    draw = ImageDraw.Draw(swatch)
    step = max(3.0, radius_px * (0.3 + 0.3 * float(rng.random())))
    rows = math.ceil(max(size) / step) + 1
    if style == "striped":
        reach = max(size)
        lean, level = (0, reach, -reach, 0)[int(rng.integers(4))], rng.random() < 0.25
        for start in (i * step for i in range(-rows, 2 * rows)):
            ends = (0, start, reach, start) if level else (start, 0, start + lean, reach)
            draw.line(ends, fill=other, width=max(1, round(step / 2)))
        return swatch
    dot = step * 0.28
    for row in range(rows):
        for column in range(rows):
            x, y = (column + 0.5 * (row % 2)) * step, row * step
            draw.ellipse((x - dot, y - dot, x + dot, y + dot), fill=other)
    return swatch
