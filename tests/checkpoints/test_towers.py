"""The numbers of published towers, against those that `transformers` has as defaults."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaOnevisionConfig,
    SiglipImageProcessor,
    SiglipVisionConfig,
)

from lapilli.checkpoints.hf_spec import vision_from_hf
from lapilli.checkpoints.towers import PUBLISHED_TOWERS

DEFAULTS = {
    "openai/clip-vit-base-patch32": lambda: CLIPVisionConfig(),
    "openai/clip-vit-large-patch14-336": lambda: LlavaConfig().vision_config,
    "google/siglip-base-patch16-224": lambda: SiglipVisionConfig(),
    # Theirs leaves the last layer out, and does not divide its width into heads.
    "google/siglip-so400m-patch14-384": lambda: changed(
        LlavaOnevisionConfig().vision_config, num_hidden_layers=27, num_attention_heads=16
    ),
}


def changed(config: Any, **values: int) -> Any:
    for key, value in values.items():
        setattr(config, key, value)
    return config


@pytest.mark.parametrize("name", DEFAULTS)
def test_numbers_are_those_of_transformers(name: str) -> None:
    assert PUBLISHED_TOWERS[name].spec == vision_from_hf(DEFAULTS[name]().to_dict(), -1, name)


def test_the_large_towers_differ_in_their_pictures_alone() -> None:
    small, large = (
        PUBLISHED_TOWERS[f"openai/clip-vit-large-patch14{end}"].spec for end in ("", "-336")
    )
    assert small == replace(large, image_size=224)


@pytest.mark.parametrize("name", PUBLISHED_TOWERS)
def test_pictures_are_prepared_as_by_transformers(name: str) -> None:
    is_clip = name.startswith("openai")
    theirs = CLIPImageProcessor() if is_clip else SiglipImageProcessor()
    images = PUBLISHED_TOWERS[name].images
    assert list(images.mean) == list(theirs.image_mean)
    assert list(images.std) == list(theirs.image_std)
    assert (images.mode, images.resample) == ("crop" if is_clip else "squash", "bicubic")
    assert images.size_px == PUBLISHED_TOWERS[name].spec.image_size
