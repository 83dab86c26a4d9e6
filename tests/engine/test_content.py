"""What stands for a prompt's beginning, and for a picture."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from lapilli.engine.blocks import BLOCK_TOKENS
from lapilli.engine.pictures import FeatureCache, Opened, Seen, digest
from lapilli.engine.prompt import Content


def shown(name: bytes, start: int, count: int) -> Opened:
    return Opened(Image.new("RGB", (1, 1)), False, name, start, count, count)


def keys(ids: list[int], *pictures: Opened) -> list[bytes]:
    return Content(ids, pictures).keys


IDS = list(range(3 * BLOCK_TOKENS + 5))


def test_full_blocks_alone_have_keys_and_grow_with_the_text() -> None:
    content = Content(IDS, [])
    assert len(content.keys) == 3
    before = list(content.keys)
    content.extend(range(BLOCK_TOKENS))
    assert len(content.keys) == 4
    assert content.keys[:3] == before


def test_a_key_stands_for_all_tokens_before_it() -> None:
    other = [7, *IDS[1:]]
    assert all(ours != theirs for ours, theirs in zip(keys(IDS), keys(other), strict=True))
    other = [*IDS[:-10], 7, *IDS[-9:]]
    assert keys(other)[:2] == keys(IDS)[:2]
    assert keys(other)[2] != keys(IDS)[2]


def test_pictures_differ_by_their_digests_and_places() -> None:
    ids = [9] * 4 * BLOCK_TOKENS
    variants = [
        keys(ids),
        keys(ids, shown(b"a" * 16, 0, 10)),
        keys(ids, shown(b"b" * 16, 0, 10)),
        keys(ids, shown(b"a" * 16, 1, 10)),
        keys(ids, shown(b"a" * 16, 0, 5), shown(b"a" * 16, 5, 5)),
        keys(ids, shown(b"a" * 16, 0, 5), shown(b"b" * 16, 5, 5)),
        keys(ids, shown(b"b" * 16, 0, 5), shown(b"a" * 16, 5, 5)),
        keys(ids, shown(b"a" * 16, 0, 40)),
    ]
    assert len({variant[0] for variant in variants}) == len(variants)
    assert len({variant[3] for variant in variants}) == len(variants)


def pixels(width: int, height: int) -> Image.Image:
    values = np.arange(width * height * 3, dtype=np.uint8).reshape(height, width, 3)
    return Image.fromarray(values)


def test_equal_bytes_of_another_shape_have_another_digest() -> None:
    wide, tall = pixels(6, 2), pixels(2, 6)
    assert wide.tobytes() == tall.tobytes()
    assert digest(wide, "") != digest(tall, "")


def test_a_digest_depends_on_pixels_and_settings_alone() -> None:
    image = pixels(6, 2)
    changed = image.copy()
    changed.putpixel((5, 1), (1, 2, 3))
    assert digest(image, "pad") == digest(image.copy(), "pad")
    assert len({digest(image, "pad"), digest(image, "crop"), digest(changed, "pad")}) == 3
    assert len(digest(image, "pad")) * 8 >= 128


def test_features_used_last_are_kept_within_the_bound() -> None:
    cache = FeatureCache(3 * 40)
    for name in (b"a", b"b", b"c"):
        cache.put(name, Seen(torch.zeros(10)))
    assert cache.get(b"a") is not None
    cache.put(b"d", Seen(torch.zeros(10)))
    assert cache.get(b"b") is None
    assert all(cache.get(name) is not None for name in (b"a", b"c", b"d"))
    cache.put(b"e", Seen(torch.zeros(1000)))  # larger than all: not kept, and nothing lost for it
    assert len(cache) == 3
    assert cache.num_bytes == 120


def test_without_room_nothing_is_kept() -> None:
    cache = FeatureCache(0)
    cache.put(b"a", Seen(torch.zeros(1)))
    assert cache.get(b"a") is None


def test_positions_of_features_that_are_shown_are_their_own() -> None:
    image = Image.new("RGB", (1, 1))
    pictures = [Opened(image, False, b"a", 2, 3, 10), Opened(image, False, b"b", 6, 2, 4)]
    seen = {
        b"a": Seen(torch.zeros(3, 1), torch.tensor([0, 4, 9])),
        b"b": Seen(torch.zeros(2, 1), torch.tensor([1, 3])),
    }
    content = Content(range(10), pictures)
    whole = [0, 1, 2, 6, 11, 12, 14, 16, 17, 18]
    assert content.positions(0, 10, seen).tolist() == whole
    assert content.num_hidden == 9
    for first in range(10):
        for end in range(first + 1, 11):
            shown = {
                part.digest: seen[part.digest] for part in content.pictures_between(first, end)
            }
            assert content.positions(first, end, shown).tolist() == whole[first:end]
