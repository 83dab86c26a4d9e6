"""Random drawn scenes: what is in them, where it stands, and the finished picture."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from PIL import Image, ImageFilter

from lapilli.synth.backgrounds import Tones, add_noise, crop_background, sample_tones
from lapilli.synth.painting import STYLES, Style, paint
from lapilli.synth.palette import CLEAR_DIFFERENCE, Rgb, difference, sample_color
from lapilli.synth.shapes import WAYS, Form, Mask, Way, half_extent
from lapilli.synth.symbols import COLORS, SHAPES, SIZES, UNSEEN_PAIRS, Box, Symbols, Thing

Grade = Literal["plain", "hard"]
Unseen = Literal["never", "only-some", "any"]
Pair = tuple[str, str]
"""(color, shape)."""

DIAMETERS = {"small": (0.12, 0.17), "large": (0.24, 0.36)}
"""The larger side of a thing's box as a share of the picture's side; nothing lies between."""

_MOST_THINGS = {"plain": 6, "hard": 8}
_GAP = 0.02
_MARGIN = 0.015
_PLACE_TRIES = 60
_SCALES = (1.0, 1.0, 0.75, 1.5, 2.0)
_FILTERS = (
    Image.Resampling.BILINEAR,
    Image.Resampling.BICUBIC,
    Image.Resampling.LANCZOS,
    Image.Resampling.BOX,
    Image.Resampling.HAMMING,
)


@dataclass(frozen=True)
class Drawn:
    """A picture (RGB) and the truth about it."""

    image: Image.Image
    symbols: Symbols


@dataclass(frozen=True, slots=True)
class Item:
    """A thing to draw; lengths and places are shares of the picture's side."""

    name: str
    color: str
    rgb: Rgb
    size: str
    form: Form
    style: Style = "filled"
    diameter: float = 0.0
    center: tuple[float, float] = (0.0, 0.0)

    @property
    def box(self) -> Box:
        """Where it will stand, before a pixel is drawn."""
        half_x, half_y = (half * self.diameter / 2 for half in half_extent(self.form))
        x, y = self.center
        return x - half_x, y - half_y, x + half_x, y + half_y


def draw_scene(
    rng: np.random.Generator,
    grade: Grade,
    *,
    size_px: int = 128,
    unseen: Unseen = "never",
    backgrounds: Sequence[Image.Image] | None = None,
    max_things: int | None = None,
    stretch: float = 1.0,
) -> Drawn:
    """Return a random scene; the same state of `rng` gives the same picture.

    Args:
        rng: every choice comes from it.
        grade: "plain" (1-6 filled things apart from each other on flat tones or gradients) or
            "hard" (1-8, also outlined, rotated, textured, slightly overlapping, on noise and
            photographs, blurred or compressed).
        size_px: side of the picture.
        unseen: "never" draws no pair of `UNSEEN_PAIRS`, "only-some" at least one beside
            ordinary ones, "any" has no rule.
        backgrounds: photographs for the hard grade; without them it has none.
        max_things: most things in the picture, instead of the grade's own limit.
        stretch: width over height that a true square gets, as in a picture of another format
            that was squashed: 0.75 for one that was 4 by 3.
    """
    most = max_things if max_things is not None else _MOST_THINGS[grade]
    pairs = pick_pairs(rng, int(rng.integers(1, most + 1)), unseen)
    items = make_items(rng, pairs, grade, stretch)
    canvas_px = round(size_px * _SCALES[int(rng.integers(len(_SCALES)))])
    canvas, word, items = _make_background(rng, items, grade, canvas_px, backgrounds)
    placed = place_items(rng, items, overlap=grade == "hard" and rng.random() < 0.4)
    if word == "a photograph":
        placed = [_recolor(rng, item, canvas) for item in placed]
    order = rng.permutation(len(placed))
    things = paint_items(rng, canvas, [placed[i] for i in order])
    image = finish(rng, canvas, size_px, grade)
    return Drawn(image, Symbols(things=things, kind="scene", background=word))


def pick_pairs(rng: np.random.Generator, count: int, unseen: Unseen) -> list[Pair]:
    """Return (color, shape) pairs, often alike in part or whole, so that questions have a point."""
    echo = (0.0, 0.35, 0.7)[int(rng.integers(3))]
    kept = (("color",), ("shape",), ("color", "shape"), ("color", "shape", "both"), ("both",))
    kinds = kept[int(rng.integers(len(kept)))]
    pairs: list[Pair] = []
    if unseen == "only-some":
        known = sorted(UNSEEN_PAIRS)
        pairs.append(known[int(rng.integers(len(known)))])
    while len(pairs) < count:
        color = COLORS[int(rng.integers(len(COLORS)))]
        shape = SHAPES[int(rng.integers(len(SHAPES)))]
        if pairs and rng.random() < echo:
            model = pairs[int(rng.integers(len(pairs)))]
            kind = kinds[int(rng.integers(len(kinds)))]
            if kind == "both":
                pairs.append(model)
                continue
            color = model[0] if kind == "color" else color
            shape = model[1] if kind == "shape" else shape
        if unseen == "any" or (color, shape) not in UNSEEN_PAIRS:
            pairs.append((color, shape))
    return pairs


def make_items(
    rng: np.random.Generator, pairs: Sequence[Pair], grade: Grade, stretch: float = 1.0
) -> list[Item]:
    """Return one item a pair with form, style and size, still without tone and place."""
    items = [_make_item(rng, pair, grade, stretch) for pair in pairs]
    if rng.random() < 0.15:
        items = [replace(item, size=items[0].size) for item in items]
    return items


def _make_item(rng: np.random.Generator, pair: Pair, grade: Grade, stretch: float) -> Item:
    color, shape = pair
    style: Style = "filled"
    if grade == "hard" and rng.random() < 0.6:
        style = STYLES[int(rng.integers(len(STYLES)))]
        # An outlined circle is a ring, and a ring's outline is two of them.
        if style == "outlined" and shape in ("circle", "ring"):
            style = "edged"
    form = replace(make_form(rng, shape, grade), stretch=stretch)
    if style == "edged":
        form = _with_wide_band(form)
    return Item(shape, color, (0, 0, 0), SIZES[int(rng.integers(len(SIZES)))], form, style)


def make_form(rng: np.random.Generator, shape: str, grade: Grade) -> Form:
    """Return a shape with particulars within what everyone calls by its name."""
    u, v, w = rng.random(3).tolist()
    turn = _turn(rng, shape, grade)
    match shape:
        case "circle":
            return Form(shape, 0.0, 0.96 + 0.08 * u if grade == "hard" else 1.0)
        case "ring":
            return Form(shape, detail=0.42 + 0.33 * u)
        case "square":
            return Form(shape, turn, 0.94 + 0.12 * u, detail=0.08 + 0.2 * v if w < 0.2 else 0.0)
        case "triangle":
            return Form(shape, turn, 0.95 + 0.25 * u)
        case "star":
            points = 5 if w < 0.88 else 4 if w < 0.93 else 6
            inner = {4: (0.3, 0.08), 5: (0.36, 0.14), 6: (0.48, 0.12)}[points]
            return Form(shape, turn, detail=inner[0] + inner[1] * u, points=points)
        case "heart":
            return Form(shape, turn, 0.92 + 0.2 * u, lobed=v < 0.5)
        case "cross":
            return Form(shape, turn, detail=0.18 + 0.22 * u)
        case _:
            return Form(shape, turn, 0.58 + 0.42 * u if w < 0.7 else 1.0)


def _turn(rng: np.random.Generator, shape: str, grade: Grade) -> float:
    """Return a rotation in radians that leaves the name in no doubt: a square must not stand
    on its corner, nor a diamond on its side."""
    free, u = (float(value) for value in rng.random(2))
    tilt = 2 * u - 1
    if grade == "hard" and free < 0.7:
        limits = {"square": 0.3, "diamond": 0.25, "heart": 0.5}
        return tilt * limits.get(shape, math.pi)
    if shape == "triangle" and free > 0.75:
        return round(u * 4) * math.pi / 2
    if shape == "star" and free > 0.7:
        return tilt * math.pi
    return 0.0


def _make_background(
    rng: np.random.Generator,
    items: list[Item],
    grade: Grade,
    canvas_px: int,
    backgrounds: Sequence[Image.Image] | None,
) -> tuple[Image.Image, str | None, list[Item]]:
    """Return a canvas, its word, and the items colored so that all of them stand out on it."""
    if grade == "hard" and backgrounds and rng.random() < 0.4:
        canvas = crop_background(rng, backgrounds, canvas_px)
        return canvas, "a photograph", _color_items(rng, items)
    tones, items = match_tones(rng, items)
    canvas = tones.render(canvas_px)
    if grade == "hard" and rng.random() < 0.35:
        canvas = add_noise(rng, canvas, 0.04 + 0.14 * float(rng.random()))
    return canvas, tones.word, items


def match_tones(rng: np.random.Generator, items: Sequence[Item]) -> tuple[Tones, list[Item]]:
    """Return a background and the items in tones of their names that stand out on it."""
    # Ends soon: teal and muted tones are nobody's name, so some background shows any choice.
    while True:
        colored = _color_items(rng, items)
        for _ in range(40):
            tones = sample_tones(rng)
            if all(tones.shows(item.color, item.rgb) for item in colored):
                return tones, colored


def _color_items(rng: np.random.Generator, items: Sequence[Item]) -> list[Item]:
    """Return the items with a tone of their name, things of one name often sharing the tone."""
    shared: dict[str, Rgb] = {}
    same = rng.random() < 0.6
    colored = []
    for item in items:
        rgb = shared.get(item.color) if same else None
        if rgb is None:
            rgb = shared[item.color] = sample_color(rng, item.color)
        colored.append(replace(item, rgb=rgb))
    return colored


def _recolor(rng: np.random.Generator, item: Item, canvas: Image.Image) -> Item:
    """Return the item fit for its part of a photograph: in another tone and rimmed if it sinks."""
    x1, y1, x2, y2 = (v * canvas.width for v in item.box)
    cells = canvas.resize((4, 4), Image.Resampling.BOX, box=(x1, y1, x2, y2))
    patch = np.asarray(cells).reshape(-1, 3).tolist()
    behind: list[Rgb] = [(r, g, b) for r, g, b in patch]

    def share_hidden(tone: Rgb) -> float:
        return sum(difference(tone, other) < CLEAR_DIFFERENCE for other in behind) / len(behind)

    if share_hidden(item.rgb) <= 0.2:
        return item
    tones = [sample_color(rng, item.color) for _ in range(4)]
    rgb = min(tones, key=share_hidden)
    return replace(item, rgb=rgb, style="rimmed", form=_with_wide_band(item.form))


def _with_wide_band(form: Form) -> Form:
    # A thin ring between two lines would read as two circles.
    return replace(form, detail=min(form.detail, 0.45)) if form.shape == "ring" else form


def place_items(
    rng: np.random.Generator,
    items: Sequence[Item],
    *,
    overlap: bool = False,
    taken: Sequence[Box] = (),
) -> list[Item]:
    """Return the items with diameters and places, outside the boxes that are `taken`.

    On an empty canvas the first keeps its place for certain; one that finds none becomes small,
    and is left out when even that does not fit. With `overlap` things of different tones may
    hide a little of each other.
    """
    placed: list[Item] = []
    by_size = sorted(range(len(items)), key=lambda i: (i > 0, items[i].size == "small"))
    for index in by_size:
        item = items[index]
        found = _find_place(rng, item, placed, overlap, taken)
        if found is None and item.size == "large":
            found = _find_place(rng, replace(item, size="small"), placed, overlap, taken)
        if found is not None:
            placed.append(found)
    return placed


def _find_place(
    rng: np.random.Generator,
    item: Item,
    placed: Sequence[Item],
    overlap: bool,
    taken: Sequence[Box],
) -> Item | None:
    low, high = DIAMETERS[item.size]
    half_x, half_y = half_extent(item.form)
    for u, v, w in rng.random((_PLACE_TRIES, 3)).tolist():
        radius = (low + (high - low) * w) / 2
        reach_x, reach_y = radius * half_x + _MARGIN, radius * half_y + _MARGIN
        center = (reach_x + u * (1 - 2 * reach_x), reach_y + v * (1 - 2 * reach_y))
        trial = replace(item, diameter=2 * radius, center=center)
        if any(shared_area(trial.box, box) > 0 for box in taken):
            continue
        if all(_fits_beside(trial, other, overlap) for other in placed):
            return trial
    return None


def shared_area(box: Box, other: Box) -> float:
    """Return the area that two boxes share, each widened by half of the least gap."""
    wide = min(box[2], other[2]) - max(box[0], other[0]) + _GAP
    high = min(box[3], other[3]) - max(box[1], other[1]) + _GAP
    return max(wide, 0.0) * max(high, 0.0)


def _fits_beside(item: Item, other: Item, overlap: bool) -> bool:
    shared = shared_area(item.box, other.box)
    if shared == 0:
        return True
    if not overlap or difference(item.rgb, other.rgb) < CLEAR_DIFFERENCE:
        return False
    smaller = min((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (item.box, other.box))
    return shared < 0.2 * smaller


def paint_items(
    rng: np.random.Generator, canvas: Image.Image, items: Sequence[Item]
) -> tuple[Thing, ...]:
    """Paint the items onto the canvas in order and return them with the box that is visible."""
    way: Way = WAYS[int(np.searchsorted((0.45, 0.8), rng.random()))]
    side = canvas.width
    masks: list[Mask] = []
    for item in items:
        center = (item.center[0] * side, item.center[1] * side)
        masks.append(
            paint(
                rng, canvas, item.form, item.rgb, item.style, center, item.diameter * side / 2, way
            )
        )
    things = []
    for index, (item, mask) in enumerate(zip(items, masks, strict=True)):
        box = mask.visible_box(masks[index + 1 :])
        if box is not None:
            x1, y1, x2, y2 = (min(max(v / side, 0.0), 1.0) for v in box)
            things.append(Thing(item.name, (x1, y1, x2, y2), item.color, item.size))
    return tuple(things)


def finish(
    rng: np.random.Generator, canvas: Image.Image, size_px: int, grade: Grade
) -> Image.Image:
    """Return the canvas at its final size; a hard one may be blurred, noisy or compressed too."""
    image = canvas
    if canvas.width != size_px:
        resampling = _FILTERS[int(rng.integers(len(_FILTERS)))]
        image = canvas.resize((size_px, size_px), resampling)
    if grade == "plain":
        return image
    blur, noise, jpeg, strength = rng.random(4).tolist()
    if blur < 0.2:
        image = image.filter(ImageFilter.GaussianBlur((0.3 + 0.6 * strength) * size_px / 128))
    if noise < 0.2:
        image = add_noise(rng, image, 0.02 + 0.06 * strength)
    if jpeg < 0.3:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=40 + round(50 * strength))
        image = Image.open(buffer).convert("RGB")
    return image
