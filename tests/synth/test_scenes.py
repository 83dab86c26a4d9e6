"""Drawn scenes: what is promised of them holds for the pixels."""

from __future__ import annotations

import itertools
from collections import Counter
from functools import lru_cache

import numpy as np
import pytest
from PIL import Image

from lapilli.synth.palette import ANCHORS, difference, name_of, sample_color
from lapilli.synth.scenes import Drawn, Grade, Item, draw_scene, make_form, paint_items, pick_pairs
from lapilli.synth.shapes import WAYS, Form, Mask, draw_edge_mask, draw_mask
from lapilli.synth.symbols import COLORS, SHAPES, UNSEEN_PAIRS, Box, Thing

GRADES: tuple[Grade, ...] = ("plain", "hard")


def scenes(grade: Grade, count: int, seed: int = 0, **options: object) -> list[Drawn]:
    rng = np.random.default_rng(seed)
    return [draw_scene(rng, grade, **options) for _ in range(count)]  # type: ignore[arg-type]


@lru_cache
def many(grade: Grade) -> tuple[Drawn, ...]:
    """Scenes without options, drawn once for all tests that look at them."""
    return tuple(scenes(grade, {"plain": 400, "hard": 200}[grade]))


def pair(thing: Thing) -> tuple[str | None, str]:
    return thing.color, thing.name


def photograph() -> Image.Image:
    rng = np.random.default_rng(1)
    return Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize((160, 120))


@pytest.mark.parametrize("grade", GRADES)
def test_same_seed_gives_the_same_picture(grade: Grade) -> None:
    first = scenes(grade, 12, seed=5, backgrounds=[photograph()])
    again = scenes(grade, 12, seed=5, backgrounds=[photograph()])
    for one, other in zip(first, again, strict=True):
        assert one.symbols == other.symbols
        assert one.image.tobytes() == other.image.tobytes()


@pytest.mark.parametrize("size_px", [96, 128, 256])
def test_picture_has_the_size_asked_for(size_px: int) -> None:
    for drawn in scenes("hard", 10, size_px=size_px):
        assert drawn.image.size == (size_px, size_px)
        assert drawn.image.mode == "RGB"


@pytest.mark.parametrize("grade", GRADES)
def test_unseen_pairs_never_occur_unless_asked_for(grade: Grade) -> None:
    for drawn in many(grade):
        assert not UNSEEN_PAIRS & {pair(thing) for thing in drawn.symbols.things}


@pytest.mark.parametrize("grade", GRADES)
def test_only_some_shows_an_unseen_pair_in_every_scene_among_ordinary_things(grade: Grade) -> None:
    drawn = scenes(grade, 100, unseen="only-some", size_px=48)
    shown = [[pair(thing) in UNSEEN_PAIRS for thing in d.symbols.things] for d in drawn]
    assert all(any(are_unseen) for are_unseen in shown)
    assert 0.2 < np.mean(np.concatenate(shown)) < 0.7


def test_any_draws_unseen_pairs_at_their_natural_rate() -> None:
    rng = np.random.default_rng(0)
    pairs = [p for _ in range(600) for p in pick_pairs(rng, 4, "any")]
    assert 0.05 < np.mean([p in UNSEEN_PAIRS for p in pairs]) < 0.14


def test_every_count_color_and_shape_is_about_as_common_as_the_others() -> None:
    drawn = many("plain")
    counts = Counter(len(d.symbols.things) for d in drawn)
    colors = Counter(t.color for d in drawn for t in d.symbols.things)
    shapes = Counter(t.name for d in drawn for t in d.symbols.things)
    assert set(counts) == {1, 2, 3, 4, 5, 6}
    assert set(colors) == set(COLORS)
    assert set(shapes) == set(SHAPES)
    for tally in (counts, colors, shapes):
        assert min(tally.values()) > 0.5 * max(tally.values())


def test_many_scenes_repeat_a_thing_so_that_counting_pays() -> None:
    rng = np.random.default_rng(0)
    most = [max(Counter(pick_pairs(rng, 5, "never")).values()) for _ in range(300)]
    assert np.mean([m >= 2 for m in most]) > 0.2
    assert np.mean([m == 1 for m in most]) > 0.2


def test_max_things_is_never_exceeded() -> None:
    assert all(1 <= len(d.symbols.things) <= 2 for d in scenes("hard", 60, max_things=2))


def test_hard_scenes_hold_up_to_eight_things() -> None:
    assert max(len(d.symbols.things) for d in many("hard")) == 8


def test_small_and_large_things_differ_clearly() -> None:
    for drawn in scenes("plain", 60, size_px=192):
        for thing in drawn.symbols.things:
            side = max(thing.box[2] - thing.box[0], thing.box[3] - thing.box[1])
            low, high = {"small": (0.1, 0.185), "large": (0.225, 0.375)}[str(thing.size)]
            assert low < side < high


def overlaps(a: Box, b: Box) -> bool:
    return min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])


def test_things_of_plain_scenes_stand_apart_inside_the_picture() -> None:
    for drawn in many("plain"):
        boxes = [thing.box for thing in drawn.symbols.things]
        assert all(min(box) >= 0 and max(box) <= 1 for box in boxes)
        assert not any(overlaps(a, b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_boxes_are_tight_to_the_visible_pixels() -> None:
    checked = 0
    for drawn in scenes("plain", 200, max_things=1):
        pixels = np.asarray(drawn.image).astype(int)
        behind = pixels[0, 0]
        if (pixels[0] != behind).any() or (pixels[:, 0] != behind).any():
            continue
        differs = np.abs(pixels - behind).max(axis=2)
        visible = differs > 0.35 * differs.max()
        rows, columns = np.flatnonzero(visible.any(axis=1)), np.flatnonzero(visible.any(axis=0))
        seen = np.array((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
        said = np.array(drawn.symbols.things[0].box) * drawn.image.width
        assert np.abs(seen - said).max() <= 1.5
        checked += 1
    assert checked > 60


def test_plain_things_stand_out_and_differ_in_name_from_what_is_behind() -> None:
    for drawn in many("plain"):
        corners = [drawn.image.getpixel((x, y)) for x in (0, 127) for y in (0, 127)]
        for thing in drawn.symbols.things:
            assert thing.color != drawn.symbols.background
            if thing.name != "ring" and thing.size == "large":
                x, y = (round(v * 128) for v in thing.center)
                middle = drawn.image.getpixel((x, y))
                assert all(difference(middle, corner) > 20 for corner in corners)  # type: ignore[arg-type]


def test_things_of_hard_scenes_hide_little_of_each_other() -> None:
    shares = []
    for drawn in many("hard"):
        for a, b in itertools.combinations(drawn.symbols.things, 2):
            sides = [min(a.box[i + 2], b.box[i + 2]) - max(a.box[i], b.box[i]) for i in (0, 1)]
            shares.append(max(sides[0], 0) * max(sides[1], 0) / min(a.area, b.area))
    assert max(shares) < 0.25
    assert sum(share > 0 for share in shares) > 10


def test_the_box_of_a_thing_that_is_partly_hidden_holds_what_is_visible() -> None:
    canvas = Image.new("RGB", (100, 100), "white")
    form = Form("square")
    below = Item("square", "red", (255, 0, 0), "large", form, diameter=0.4, center=(0.4, 0.5))
    above = Item("square", "blue", (0, 0, 255), "large", form, diameter=0.4, center=(0.6, 0.5))
    things = paint_items(np.random.default_rng(0), canvas, [below, above])
    assert things[0].box == pytest.approx((0.2, 0.3, 0.4, 0.7), abs=0.011)
    assert things[1].box == pytest.approx((0.4, 0.3, 0.8, 0.7), abs=0.011)


def test_things_stand_out_on_a_photograph_of_their_own_color() -> None:
    photo, checked = Image.new("RGB", (64, 64), (220, 20, 60)), 0
    for drawn in scenes("hard", 200, backgrounds=[photo], size_px=64, max_things=3):
        pixels = np.asarray(drawn.image)
        behind = tuple(np.median(pixels.reshape(-1, 3), axis=0).astype(int).tolist())
        for thing in drawn.symbols.things:
            if drawn.symbols.background == "a photograph" and thing.color in ("red", "pink"):
                x1, y1, x2, y2 = (round(v * 64) for v in thing.box)
                inside = pixels[y1:y2, x1:x2].reshape(-1, 3).tolist()
                assert max(difference((r, g, b), behind) for r, g, b in inside) > 20
                checked += 1
    assert checked > 10


def test_photographs_lie_behind_some_hard_scenes_only() -> None:
    words = [d.symbols.background for d in scenes("hard", 60, backgrounds=[photograph()])]
    assert 8 < words.count("a photograph") < 45
    plain = scenes("plain", 20, backgrounds=[photograph()])
    assert all(d.symbols.background != "a photograph" for d in plain)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(4))
def test_ways_of_drawing_agree_on_a_form(shape: str, seed: int) -> None:
    form = make_form(np.random.default_rng(seed), shape, "hard")
    masks = [draw_mask(form, (40.3, 41.6), 30.0, way) for way in WAYS]
    areas = [np.asarray(mask.image).astype(float) / 255 for mask in masks]
    # The smooth heart by distance is another formula; aliased edges reach half a pixel outwards.
    least = {"distance": 0.8 if shape == "heart" else 0.94, "aliased": 0.85, "supersampled": 1.0}
    for way, mask, area in zip(WAYS, masks, areas, strict=True):
        box = mask.box()
        assert box is not None
        assert abs(max(box[2] - box[0], box[3] - box[1]) - 60) <= 2.5
        shared = np.minimum(area, areas[0]).sum() / np.maximum(area, areas[0]).sum()
        assert shared >= least[way]


def test_a_smooth_mask_is_softer_than_an_aliased_one() -> None:
    for way in WAYS:
        levels = np.unique(np.asarray(draw_mask(Form("circle"), (20, 20), 12.0, way).image))
        assert (len(levels) > 2) == (way != "aliased")


def test_an_edge_leaves_the_middle_open_and_keeps_the_box() -> None:
    filled = draw_mask(Form("square"), (32.0, 32.0), 20.0, "supersampled")
    edge = draw_edge_mask(Form("square"), (32.0, 32.0), 20.0, 4.0)
    assert edge.image.getpixel((32 - edge.left, 32 - edge.top)) == 0
    a, b = filled.box(), edge.box()
    assert a is not None
    assert b is not None
    assert np.abs(np.subtract(a, b)).max() <= 1


def test_visible_box_leaves_out_what_is_painted_over() -> None:
    square = Mask(Image.new("L", (10, 10), 255), 0, 0)
    cover = Mask(Image.new("L", (10, 10), 255), 6, -2)
    assert square.visible_box([]) == (0, 0, 10, 10)
    assert square.visible_box([Mask(cover.image, 6, 5), cover]) == (0, 0, 6, 10)
    assert square.visible_box([Mask(Image.new("L", (30, 30), 255), -9, -9)]) is None


@pytest.mark.parametrize("name", COLORS)
def test_tones_of_one_name_are_never_in_the_range_of_another(name: str) -> None:
    rng = np.random.default_rng(0)
    tones = [*ANCHORS[name], *(sample_color(rng, name) for _ in range(300))]
    assert {name_of(tone) for tone in tones} <= {name, None}
    assert np.mean([name_of(tone) == name for tone in tones]) > 0.6


@pytest.mark.parametrize("stretch", [0.6, 1.5])
def test_a_stretched_scene_looks_like_one_squashed_from_another_format(stretch: float) -> None:
    proportions = [
        (x2 - x1) / (y2 - y1)
        for drawn in scenes("plain", 60, stretch=stretch)
        for thing in drawn.symbols.things
        for x1, y1, x2, y2 in (thing.box,)
        if thing.name in ("circle", "ring", "cross") and thing.size == "large"
    ]
    assert len(proportions) > 10
    assert proportions == pytest.approx([stretch] * len(proportions), rel=0.12)
