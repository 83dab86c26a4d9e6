"""A prompt as the engine reads it: ids, pictures in their places, and keys of its beginnings."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

from lapilli.engine.blocks import BLOCK_TOKENS, Key
from lapilli.engine.pictures import DIGEST_BYTES, Opened


class Content:
    """The tokens of a sequence, prompt and answer, and what stands in its picture places.

    Attributes:
        ids: of the tokens so far; in a picture's places, the image token's.
        pictures: in the order of their places.
        keys: of the blocks that are full; each stands for all tokens up to its block's end.
    """

    def __init__(self, ids: Sequence[int], pictures: Sequence[Opened]) -> None:
        self.ids: list[int] = []
        self.pictures = list(pictures)
        self.keys: list[Key] = []
        self.extend(ids)

    def __len__(self) -> int:
        return len(self.ids)

    def extend(self, ids: Sequence[int]) -> None:
        """Add tokens at the end."""
        self.ids += ids
        for block in range(len(self.keys), len(self.ids) // BLOCK_TOKENS):
            self.keys.append(self._key(block))

    def _key(self, block: int) -> Key:
        start = block * BLOCK_TOKENS
        tokens = array("q", self.ids[start : start + BLOCK_TOKENS])
        shown = self.pictures_between(start, start + BLOCK_TOKENS)
        for picture in shown:
            for place in _within(picture, start, start + BLOCK_TOKENS):
                tokens[place - start] = -1 - (place - picture.start)  # no id is below 0
        result = hashlib.blake2b(digest_size=DIGEST_BYTES)
        result.update(self.keys[-1] if self.keys else b"")
        result.update(tokens.tobytes())
        for picture in shown:
            result.update(picture.digest)
        return result.digest()

    def pictures_between(self, first: int, end: int) -> list[Opened]:
        """Return the pictures that have places from `first` to before `end`."""
        return [part for part in self.pictures if len(_within(part, first, end))]


def _within(picture: Opened, first: int, end: int) -> range:
    """The places of a picture from `first` to before `end`."""
    return range(max(first, picture.start), min(end, picture.start + picture.count))
