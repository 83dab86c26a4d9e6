"""Pictures become the numbers that `transformers` makes of them."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from lapilli.config import from_dict
from lapilli.errors import ConfigError
from lapilli.processor.images import ImageSettings, normalize, to_pixels, to_uint8, to_views
from lapilli.processor.opening import open_image
from lapilli.tiling import Tiling, grids_of

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)
SIZES = [(64, 48), (31, 77), (200, 33), (50, 50), (20, 30), (97, 96)]


def noise(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["crop", "pad", "squash"])
def test_pixels_equal_transformers(size: tuple[int, int], mode: str) -> None:
    image = noise(*size)
    side = 42
    square = {"height": side, "width": side}
    if mode == "squash":
        settings = ImageSettings(side, "squash", HALF, HALF)
        reference = SiglipImageProcessorPil(size=square)
    elif mode == "crop":
        settings = ImageSettings(side, "crop", CLIP_MEAN, CLIP_STD)
        reference = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=square)
    else:
        settings = ImageSettings(side, "pad", CLIP_MEAN, CLIP_STD)
        reference = LlavaImageProcessorPil(
            size={"shortest_edge": side}, crop_size=square, do_pad=True
        )
    expected = reference(image, return_tensors="np")["pixel_values"][0]
    pixels = to_pixels(image, settings)
    assert pixels.dtype == np.float32
    assert pixels.shape == (3, side, side)
    np.testing.assert_allclose(pixels, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["1", "L", "P", "CMYK", "YCbCr", "HSV"])
@pytest.mark.parametrize("mode", ["crop", "pad"])
def test_pictures_in_other_colors_equal_transformers(kind: str, mode: str) -> None:
    image = noise(45, 31).convert(kind)
    settings = ImageSettings(24, mode, CLIP_MEAN, CLIP_STD)
    reference = LlavaImageProcessorPil(
        size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}, do_pad=mode == "pad"
    )
    expected = reference(image, return_tensors="np")["pixel_values"][0]
    pixels = to_pixels(open_image(image), settings)
    np.testing.assert_allclose(pixels, expected, rtol=0, atol=1e-6)


PINPOINTS = [[20, 40], [40, 20], [40, 40], [60, 20], [20, 60]]
TILING = Tiling(20, 2, grids_of(PINPOINTS, 20, "hf"))
TILED_SIZES = [*SIZES, (1, 1), (1, 700), (700, 1), (40, 40), (41, 39), (300, 500)]


@pytest.mark.parametrize("size", TILED_SIZES)
def test_tiles_equal_those_of_llava_next(size: tuple[int, int]) -> None:
    image = noise(*size)
    settings = ImageSettings(20, "squash", CLIP_MEAN, CLIP_STD, tiling=TILING)
    reference = LlavaNextImageProcessorPil(
        size={"shortest_edge": 20},
        crop_size={"height": 20, "width": 20},
        image_grid_pinpoints=PINPOINTS,
    )
    expected = reference(image, return_tensors="np")["pixel_values"][0]
    views = to_views(image, settings, is_cut=True)
    assert views.dtype == np.float32 and len(views) > 1
    np.testing.assert_allclose(views, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", TILED_SIZES)
def test_whole_pictures_and_tiles_equal_those_of_onevision(size: tuple[int, int]) -> None:
    image = noise(*size)
    settings = ImageSettings(20, "pad", CLIP_MEAN, HALF, tiling=TILING)
    reference = LlavaOnevisionImageProcessorPil(
        size={"height": 20, "width": 20},
        image_grid_pinpoints=PINPOINTS,
        image_mean=CLIP_MEAN,
        image_std=HALF,
    )
    alone = reference(image, return_tensors="np")["pixel_values"][0]
    one_of_two = reference([[image, image]], return_tensors="np")["pixel_values"][0]
    for is_cut, expected in ((True, alone), (False, one_of_two)):
        views = to_views(image, settings, is_cut=is_cut)
        np.testing.assert_allclose(views, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("resample", ["bicubic", "bilinear", "lanczos"])
def test_resample_filter_is_the_one_asked_for(resample: str) -> None:
    image = noise(70, 60)
    settings = ImageSettings(24, "squash", HALF, HALF, resample=resample)
    expected = image.resize((24, 24), Image.Resampling[resample.upper()])
    np.testing.assert_array_equal(
        to_uint8(image, settings), np.asarray(expected).transpose(2, 0, 1)
    )


def test_cached_bytes_normalize_to_the_same_pixels_also_in_a_batch() -> None:
    settings = ImageSettings(16, "pad", CLIP_MEAN, CLIP_STD)
    image = noise(40, 20)
    cached = to_uint8(image, settings)
    assert cached.dtype == np.uint8
    batch = normalize(np.stack([cached, cached]), settings)
    np.testing.assert_array_equal(batch[1], to_pixels(image, settings))


def test_padding_is_the_truncated_mean_color() -> None:
    settings = ImageSettings(32, "pad", CLIP_MEAN, CLIP_STD)
    pixels = to_uint8(Image.new("RGB", (64, 8)), settings)
    assert pixels[:, 0, 0].tolist() == [122, 116, 104]
    assert pixels[:, 16, 16].tolist() == [0, 0, 0]


@pytest.mark.parametrize("size", [(1, 3_000_000), (3_000_000, 1)])
@pytest.mark.parametrize("mode", ["crop", "pad", "squash"])
def test_a_very_long_strip_does_not_grow_into_a_huge_canvas(size, mode: str) -> None:
    settings = ImageSettings(8, mode, HALF, HALF)
    assert to_uint8(Image.new("RGB", size, "red"), settings).shape == (3, 8, 8)


def test_long_strip_shows_its_middle_when_cropped() -> None:
    strip = Image.new("RGB", (1001, 1), "black")
    strip.paste("white", (490, 0, 511, 1))
    pixels = to_uint8(strip, ImageSettings(8, "crop", HALF, HALF))
    assert pixels.min() == 255


def test_settings_survive_json() -> None:
    settings = ImageSettings(
        20, "pad", CLIP_MEAN, CLIP_STD, resample="lanczos", max_pixels=9, tiling=TILING
    )
    row = json.loads(json.dumps(asdict(settings)))
    assert from_dict(ImageSettings, row, "processor.json") == settings


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"mode": "stretch"}, "image mode 'stretch' is unknown"),
        ({"resample": "nearest"}, "resample 'nearest' is unknown"),
        ({"size_px": 0}, "must be positive"),
        ({"mean": (0.5, 0.5)}, "need three values each"),
        ({"mean": (0.5, 0.5, math.nan)}, "must be finite"),
        ({"std": (0.5, 0.0, 0.5)}, "std above 0"),
        ({"tiling": TILING}, "tiles of 20 pixels, size_px 8"),
    ],
)
def test_wrong_settings_are_named(values: dict[str, Any], reason: str) -> None:
    right = {"size_px": 8, "mode": "pad", "mean": HALF, "std": HALF}
    with pytest.raises(ConfigError, match=reason):
        ImageSettings(**right | values)
