"""The arithmetic of tiles equals that of `transformers`, and differs from it where the original
does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlavaNextProcessor
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
from transformers.models.llava_next.modeling_llava_next import (
    image_size_to_num_patches,
    unpad_image,
)

from lapilli.errors import ConfigError
from lapilli.tiling import Size, Tiling, grids_of

NEXT = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
ONEVISION = [[384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)]
EXTREMES = [(1, 1), (1, 10_000), (10_000, 1), (3, 5000), (336, 336), (337, 335), (8000, 7999)]


def llava_next(**values: Any) -> Tiling:
    return Tiling(336, 24, **{"grids": grids_of(NEXT, 336, "hf")} | values)


def onevision() -> Tiling:
    return Tiling(384, 27, grids_of(ONEVISION, 384, "hf"), max_tiles=9, tiles_several=False)


def sizes(count: int) -> list[Size]:
    dice = np.random.default_rng(0)
    sides = np.exp(dice.uniform(np.log(2), np.log(4000), (count, 2))).astype(int)
    even = dice.integers(1, 12, (count, 2)) * 88  # where products should come out whole
    return [*EXTREMES, *map(tuple, sides.tolist()), *map(tuple, even.tolist())]


@pytest.mark.parametrize(
    ("tiling", "pinpoints"), [(llava_next(), NEXT), (onevision(), ONEVISION)], ids=["1.6", "ov"]
)
def test_pixels_are_laid_out_as_in_transformers(tiling: Tiling, pinpoints: Any) -> None:
    for size in sizes(200):
        canvas = select_best_resolution(size, pinpoints)
        assert tiling.canvas(size) == canvas, size
        picture = np.broadcast_to(np.uint8(0), (3, *size))
        assert tiling.resized(size) == get_patch_output_size(picture, canvas, "channels_first")
        assert tiling.num_views(size) == image_size_to_num_patches(size, pinpoints, tiling.tile_px)


@pytest.mark.parametrize("tiling", [llava_next(), onevision()], ids=["1.6", "ov"])
def test_features_of_padding_are_those_that_transformers_cuts(tiling: Tiling) -> None:
    for size in sizes(200):
        grid = torch.empty(1, 1).expand(1, *tiling.features_of_grid(size))
        assert tiling.unpadded(size) == tuple(unpad_image(grid, size).shape[1:]), size


def test_features_are_as_many_as_the_places_that_transformers_keeps() -> None:
    tiling, theirs = llava_next(), object.__new__(LlavaNextProcessor)
    theirs.patch_size, theirs.num_additional_image_tokens = 14, 0
    theirs.image_processor = type("Images", (), {"image_grid_pinpoints": NEXT})
    for size in sizes(200):
        assert tiling.num_features(size) == theirs._get_number_of_features(*size, 336, 336), size


def test_features_of_known_pictures_are_as_published() -> None:
    assert llava_next().num_features((672, 672)) == 576 + 48 * 48 + 48
    assert onevision().num_whole_features == 729 + 1
    # 6 x 6 tiles of 27 x 27 are shrunk to those of 9 tiles.
    assert onevision().num_features((2304, 2304)) == 729 + 81 * 82
    assert onevision().unpadded((2304, 2304)) == (162, 162)


def test_a_picture_smaller_than_a_tile_lies_in_hf_and_stands_in_the_original() -> None:
    original = grids_of(NEXT, 336, "original")
    for size in ((336, 336), (300, 200), (1, 1)):
        assert llava_next().canvas(size) == (336, 672)
        assert llava_next(grids=original, parity="original").canvas(size) == (672, 336)


def test_the_original_drops_a_line_where_a_product_falls_short_of_whole() -> None:
    # 110 * (24 / 176) is 14.999999999999998
    picture = (176, 110)
    assert llava_next().unpadded(picture) == (24, 16)
    assert llava_next(parity="original").unpadded(picture) == (24, 14)
    assert llava_next().num_features(picture) == 576 + 24 * 17
    assert llava_next(parity="original").num_features(picture) == 576 + 24 * 15


def test_a_strip_leaves_no_features_but_those_of_the_whole_and_newlines() -> None:
    assert llava_next().num_features((1, 10_000)) == 576
    assert llava_next().num_features((10_000, 1)) == 576 + 24


def test_shrinking_leaves_a_line_of_the_thinnest_grid() -> None:
    tiling = Tiling(10, 1, ((1, 200),), max_tiles=2, tiles_several=False)
    assert tiling.shrunk((10, 2000)) == (1, 20)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"grids": ()}, "grids is empty"),
        ({"grids": ((0, 1),)}, "must be positive"),
        ({"grids": ((17, 17),)}, "a grid of 289 tiles; give 256 or fewer"),
        ({"max_tiles": -1}, "must be positive"),
        ({"parity": "hg"}, "parity 'hg' is unknown"),
    ],
)
def test_wrong_values_are_named(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        llava_next(**values)


@pytest.mark.parametrize("pair", [[336], [336, 337], [0, 336], ["336", 336], [336.0, 336]])
def test_a_resolution_that_is_not_made_of_tiles_is_named(pair: Any) -> None:
    with pytest.raises(ConfigError, match="give two sides that are multiples of 336 pixels"):
        grids_of([pair], 336, "hf")
