"""Changed pictures: the boxes go where the objects go."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image, ImageDraw

from lapilli.data.augment import Augmentation, augment

SIZE, SIDE = 64, 320
BOX = (0.55, 0.25, 0.8, 0.4)
THING = {"name": "square", "box": list(BOX), "color": "red"}


@pytest.fixture
def picture() -> Image.Image:
    """Gray and wider than high, with a red square at BOX."""
    image = Image.new("RGB", (SIDE * 3 // 2, SIDE), (120, 120, 120))
    x1, y1, x2, y2 = (round(v * s) for v, s in zip(BOX, image.size * 2, strict=True))
    ImageDraw.Draw(image).rectangle((x1, y1, x2 - 1, y2 - 1), (255, 0, 0))
    return image


def red_bounds(image: Image.Image) -> tuple[float, float, float, float] | None:
    """Where the red is, in 0-1."""
    array = np.asarray(image).astype(int)
    is_red = array[..., 0] - array[..., 1] > 80
    if not is_red.any():
        return None
    ys, xs = np.nonzero(is_red)
    height, width = is_red.shape
    return xs.min() / width, ys.min() / height, (xs.max() + 1) / width, (ys.max() + 1) / height


def many(picture: Image.Image, how: Augmentation) -> Iterator[tuple[Image.Image, tuple]]:
    for seed in range(60):
        yield augment(picture, (THING,), how, SIZE, np.random.default_rng(seed))


@pytest.mark.parametrize(
    "how",
    [
        Augmentation(),
        Augmentation(is_mirrored=True),
        Augmentation(min_area=0.3),
        Augmentation(min_area=0.3, is_mirrored=True, light=0.3),
    ],
    ids=["unchanged", "mirrored", "cropped", "all"],
)
def test_boxes_follow_their_objects(picture: Image.Image, how: Augmentation) -> None:
    num_kept = 0
    for image, things in many(picture, how):
        assert image.size == (SIZE, SIZE)
        for thing in things:
            assert thing["box"] == pytest.approx(red_bounds(image), abs=1.5 / SIZE)
            assert {**thing, "box": list(BOX)} == THING
            num_kept += 1
    assert num_kept > 30


def test_an_object_that_is_mostly_cut_away_is_dropped(picture: Image.Image) -> None:
    cropped = list(many(picture, Augmentation(min_area=0.2)))
    dropped = [red_bounds(image) for image, things in cropped if not things]
    assert len(dropped) > 3
    assert any(dropped), "an object of which little is left should be dropped as well"
    for bounds in filter(None, dropped):
        assert min(bounds[0], bounds[1], 1 - bounds[2], 1 - bounds[3]) < 2 / SIZE


def test_a_picture_may_be_left_as_it_is(picture: Image.Image) -> None:
    image, things = augment(picture, (THING,), Augmentation(), SIZE, np.random.default_rng(0))
    assert things == (THING,)
    plain = picture.resize((SIZE, SIZE), Image.Resampling.BILINEAR, reducing_gap=2.0)
    assert image.tobytes() == plain.tobytes()


def test_half_of_the_pictures_are_mirrored(picture: Image.Image) -> None:
    middles = [
        (things[0]["box"][0] + things[0]["box"][2]) / 2
        for _, things in many(picture, Augmentation(is_mirrored=True))
    ]
    assert 15 < sum(x < 0.5 for x in middles) < 45


def test_light_changes_colors_and_nothing_else(picture: Image.Image) -> None:
    looks = list(many(picture, Augmentation(light=0.3)))
    assert all(things == (THING,) for _, things in looks)
    grays = {image.getpixel((2, 2))[0] for image, _ in looks}
    assert len(grays) > 10
    assert 120 * 0.7 * 0.7 - 2 < min(grays) < 120 < max(grays) < 120 * 1.3 * 1.3 + 2


def test_crops_keep_the_area_that_was_asked_for(picture: Image.Image) -> None:
    whole = (BOX[2] - BOX[0]) * (BOX[3] - BOX[1])
    for _, things in many(picture, Augmentation(min_area=0.6)):
        for thing in things:
            x1, y1, x2, y2 = thing["box"]
            # Never enlarged by more than the crop allows, never shrunk.
            assert 0.3 * whole < (x2 - x1) * (y2 - y1) < whole / (0.6 * 0.75) + 1e-6


def test_the_same_seed_changes_a_picture_in_the_same_way(picture: Image.Image) -> None:
    how = Augmentation(0.3, is_mirrored=True, light=0.2)
    first, again = (augment(picture, (THING,), how, SIZE, np.random.default_rng(5)) for _ in "ab")
    assert first[0].tobytes() == again[0].tobytes()
    assert first[1] == again[1]
