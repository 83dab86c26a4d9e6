"""Masks of the eight shapes, drawn in three ways: supersampled, by distance, and aliased.

A form is described once in unit coordinates (x right, y down, the larger side of its box spans
-1..1); every way of drawing places that description at a center and radius in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Points = NDArray[np.float64]
Way = Literal["supersampled", "distance", "aliased"]
WAYS: tuple[Way, ...] = ("supersampled", "distance", "aliased")

_SUPERSAMPLE = 4
_ARC_POINTS = 56


@dataclass(frozen=True, slots=True)
class Form:
    """A shape with its particulars.

    Attributes:
        shape: one of `symbols.SHAPES`.
        rotation: radians, clockwise on the picture.
        aspect: width over height before rotation.
        detail: star: inner over outer radius; ring: hole over outer radius; cross: arm width
            over its length; square: corner radius over half a side; others ignore it.
        points: of a star.
        lobed: a heart of two half discs on a square, else of a smooth curve.
        stretch: width over height of what a true square would look like: other than 1 in a picture
            that is to look as if it had been squashed from another format.
    """

    shape: str
    rotation: float = 0.0
    aspect: float = 1.0
    detail: float = 0.0
    points: int = 5
    lobed: bool = False
    stretch: float = 1.0


@dataclass(frozen=True, slots=True)
class Mask:
    """Coverage 0-255 of a window of the canvas whose top left pixel is (left, top)."""

    image: Image.Image
    left: int
    top: int

    def box(self) -> tuple[int, int, int, int] | None:
        """Bounds of the pixels at least half covered, on the canvas; None where there are none."""
        bounds = self.image.point(_HALF).getbbox()
        if bounds is None:
            return None
        x1, y1, x2, y2 = bounds
        return x1 + self.left, y1 + self.top, x2 + self.left, y2 + self.top

    def visible_box(self, above: Sequence[Mask]) -> tuple[int, int, int, int] | None:
        """Bounds of what the masks painted later leave of it; None where nothing is left."""
        width, height = self.image.size
        right, bottom = self.left + width, self.top + height
        left_over = self
        for mask in above:
            other_width, other_height = mask.image.size
            if (
                mask.left < right
                and mask.left + other_width > self.left
                and (mask.top < bottom and mask.top + other_height > self.top)
            ):
                image = left_over.image.copy()
                image.paste(0, (mask.left - self.left, mask.top - self.top), mask.image)
                left_over = Mask(image, self.left, self.top)
        return left_over.box()


_HALF = [0] * 128 + [255] * 128


def _arc(start: float, stop: float, count: int = _ARC_POINTS, radius: float = 1.0) -> Points:
    angles = np.linspace(start, stop, count, endpoint=False)
    return np.stack((np.cos(angles), np.sin(angles)), axis=1) * radius


def _star(points: int, inner: float) -> Points:
    angles = -math.pi / 2 + np.arange(2 * points) * math.pi / points
    radii = np.where(np.arange(2 * points) % 2 == 0, 1.0, inner)
    return np.stack((np.cos(angles), np.sin(angles)), axis=1) * radii[:, None]


def _square(corner: float) -> Points:
    if corner < 0.02:
        return np.array(((-1, -1), (1, -1), (1, 1), (-1, 1)), dtype=float)
    quarter = math.pi / 2
    parts = []
    for turn, (x, y) in enumerate(((1, 1), (-1, 1), (-1, -1), (1, -1))):
        middle = np.array((x, y)) * (1 - corner)
        parts.append(middle + _arc(turn * quarter, (turn + 1) * quarter, 8, corner))
    return np.concatenate(parts)


def _cross(arm: float) -> Points:
    a = arm
    return np.array(
        ((-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a),
         (a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a), (-a, -a)), dtype=float,
    )  # fmt: skip


def _smooth_heart() -> Points:
    t = np.linspace(0, 2 * math.pi, _ARC_POINTS, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack((x, -y), axis=1)


def _lobed_heart() -> Points:
    root = math.sqrt(0.5)
    left = _arc(3 * math.pi / 4, 7 * math.pi / 4, 24, root) + np.array((-0.5, -0.5))
    right = _arc(-3 * math.pi / 4, math.pi / 4, 24, root) + np.array((0.5, -0.5))
    return np.concatenate((left, right, np.array(((0.0, 1.0),))))


def _raw_outlines(form: Form) -> list[Points]:
    """Return the outer outline and, for a ring, the hole's, before rotation and fitting."""
    match form.shape:
        case "circle":
            return [_arc(0, 2 * math.pi)]
        case "ring":
            return [_arc(0, 2 * math.pi), _arc(0, 2 * math.pi, radius=form.detail)]
        case "square":
            return [_square(form.detail)]
        case "triangle":
            return [np.array(((0, -1), (1, 1), (-1, 1)), dtype=float)]
        case "star":
            return [_star(form.points, form.detail)]
        case "cross":
            return [_cross(form.detail)]
        case "diamond":
            return [np.array(((0, -1), (1, 0), (0, 1), (-1, 0)), dtype=float)]
        case "heart":
            return [_lobed_heart() if form.lobed else _smooth_heart()]
    raise AssertionError(f"no outline for {form.shape!r}")


@dataclass(frozen=True, slots=True)
class _Fitted:
    """Outlines in unit coordinates, and fitted = raw @ matrix.T + offset."""

    outlines: tuple[Points, ...]
    matrix: Points
    offset: Points


@lru_cache(maxsize=256)
def _fit(form: Form) -> _Fitted:
    cos, sin = math.cos(form.rotation), math.sin(form.rotation)
    turned_by = np.array(((cos, -sin), (sin, cos)))
    matrix = np.diag((form.stretch, 1.0)) @ turned_by @ np.diag((form.aspect, 1.0))
    turned = [outline @ matrix.T for outline in _raw_outlines(form)]
    low, high = turned[0].min(axis=0), turned[0].max(axis=0)
    scale = 2.0 / float((high - low).max())
    offset = -(low + high) / 2 * scale
    return _Fitted(tuple(p * scale + offset for p in turned), matrix * scale, offset)


@lru_cache(maxsize=256)
def half_extent(form: Form) -> tuple[float, float]:
    """Return half the width and height of the form's box; the larger of them is 1."""
    x, y = np.abs(_fit(form).outlines[0]).max(axis=0)
    return float(x), float(y)


def draw_mask(form: Form, center: tuple[float, float], radius_px: float, way: Way) -> Mask:
    """Return the filled form; `radius_px` is half of the larger side of its box."""
    left, top, side_x, side_y = _window(center, radius_px, margin=1.0)
    if way == "distance":
        return Mask(_by_distance(form, center, radius_px, (left, top, side_x, side_y)), left, top)
    zoom = _SUPERSAMPLE if way == "supersampled" else 1
    canvas = Image.new("L", (side_x * zoom, side_y * zoom))
    draw = ImageDraw.Draw(canvas)
    for outline, ink in zip(_fit(form).outlines, (255, 0), strict=False):
        draw.polygon(_on_window(outline, center, radius_px, left, top, zoom), fill=ink)
    return Mask(canvas.reduce(zoom) if zoom > 1 else canvas, left, top)


def draw_edge_mask(
    form: Form, center: tuple[float, float], radius_px: float, width_px: float
) -> Mask:
    """Return a line of `width_px` along the form's outlines, lying inside its box."""
    left, top, side_x, side_y = _window(center, radius_px, margin=1.0)
    zoom = _SUPERSAMPLE
    canvas = Image.new("L", (side_x * zoom, side_y * zoom))
    draw = ImageDraw.Draw(canvas)
    line_px = max(1, round(width_px * zoom))
    for outline in _fit(form).outlines:
        points = _on_window(outline, center, radius_px - width_px / 2, left, top, zoom)
        draw.line([*points, *points[:2]], fill=255, width=line_px, joint="curve")
    return Mask(canvas.reduce(zoom), left, top)


def _window(
    center: tuple[float, float], radius_px: float, margin: float
) -> tuple[int, int, int, int]:
    reach = radius_px + margin
    left, top = math.floor(center[0] - reach), math.floor(center[1] - reach)
    right, bottom = math.ceil(center[0] + reach), math.ceil(center[1] + reach)
    return left, top, right - left, bottom - top


def _on_window(
    outline: Points, center: tuple[float, float], radius_px: float, left: int, top: int, zoom: int
) -> list[tuple[float, float]]:
    # Pillow's integer coordinates are the middles of pixels, ours their corners: half a pixel off.
    shifted = (outline * radius_px + (center[0] - left, center[1] - top)) * zoom - 0.5
    return [(x, y) for x, y in shifted.tolist()]


def _by_distance(
    form: Form, center: tuple[float, float], radius_px: float, window: tuple[int, int, int, int]
) -> Image.Image:
    left, top, side_x, side_y = window
    fitted = _fit(form)
    inverse = np.linalg.inv(fitted.matrix).astype(np.float32)
    px = ((np.arange(side_x) + 0.5 + left - center[0]) / radius_px - fitted.offset[0]).astype("f4")
    py = ((np.arange(side_y) + 0.5 + top - center[1]) / radius_px - fitted.offset[1]).astype("f4")
    x = inverse[0, 0] * px[None, :] + inverse[0, 1] * py[:, None]
    y = inverse[1, 0] * px[None, :] + inverse[1, 1] * py[:, None]
    px_per_unit = radius_px * math.sqrt(abs(float(np.linalg.det(fitted.matrix))))
    distance_px = _distance(form, x, y) * np.float32(px_per_unit)
    coverage = np.clip(0.5 - distance_px, 0.0, 1.0) * 255.0 + 0.5
    return Image.fromarray(coverage.astype(np.uint8))


Plane = NDArray[np.floating]


def _distance(form: Form, x: Plane, y: Plane) -> Plane:
    """Return signed distances in raw units, negative inside; exact near the outline."""
    match form.shape:
        case "circle":
            return np.hypot(x, y) - 1
        case "ring":
            middle, half = (1 + form.detail) / 2, (1 - form.detail) / 2
            return np.abs(np.hypot(x, y) - middle) - half
        case "square":
            return _box_distance(x, y, 1.0, 1.0, form.detail)
        case "cross":
            upright = _box_distance(x, y, form.detail, 1.0)
            return np.minimum(upright, _box_distance(x, y, 1.0, form.detail))
        case "diamond":
            return (np.abs(x) + np.abs(y) - 1) * np.float32(math.sqrt(0.5))
        case "triangle":
            side = (2 * np.abs(x) - y - 1) * np.float32(math.sqrt(0.2))
            return np.maximum(side, y - 1)
        case "star":
            return _star_distance(x, y, form.points, form.detail)
        case "heart" if not form.lobed:
            return _implicit_heart(x, y)
        case "heart":
            root = math.sqrt(0.5)
            lobes = np.hypot(np.abs(x) - 0.5, y + 0.5) - root
            return np.minimum(lobes, (np.abs(x) + np.abs(y) - 1) * np.float32(root))
    raise AssertionError(f"no distance for {form.shape!r}")


def _box_distance(x: Plane, y: Plane, half_x: float, half_y: float, corner: float = 0.0) -> Plane:
    dx, dy = np.abs(x) - (half_x - corner), np.abs(y) - (half_y - corner)
    outside = np.hypot(np.maximum(dx, 0), np.maximum(dy, 0))
    return outside + np.minimum(np.maximum(dx, dy), 0) - np.float32(corner)


def _star_distance(x: Plane, y: Plane, points: int, inner: float) -> Plane:
    # Every star is 2 * points copies of one wedge, whose edge runs from a tip to an inner corner.
    wedge = 2 * math.pi / points
    radius = np.hypot(x, y)
    angle = np.arctan2(x, -y)
    folded = np.abs((angle + wedge / 2) % np.float32(wedge) - np.float32(wedge / 2))
    across, along = radius * np.sin(folded), radius * np.cos(folded)
    end_x, end_y = inner * math.sin(wedge / 2), inner * math.cos(wedge / 2)
    length = math.hypot(end_x, 1 - end_y)
    normal_x, normal_y = (1 - end_y) / length, end_x / length
    return across * np.float32(normal_x) + (along - 1) * np.float32(normal_y)


def _implicit_heart(x: Plane, y: Plane) -> Plane:
    # (u^2 + v^2 - 1)^3 = u^2 v^3, scaled from the smooth curve's box (half 16 wide, -17..12 high).
    u, v = x * np.float32(1.139 / 16), -(y - 2.6) * np.float32(1.118 / 14.45) + np.float32(0.118)
    ring = u * u + v * v - 1
    value = ring**3 - u * u * v**3
    du = 6 * u * ring * ring - 2 * u * v**3
    dv = 6 * v * ring * ring - 3 * u * u * v * v
    return value / (np.hypot(du, dv) + np.float32(1e-2)) * np.float32(14.0)
