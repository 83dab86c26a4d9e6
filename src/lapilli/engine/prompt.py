"""A prompt as the engine reads it: ids, pictures in their places, and keys of its beginnings."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lapilli.engine.blocks import BLOCK_TOKENS, Key
from lapilli.engine.pictures import DIGEST_BYTES, Opened, Seen
from lapilli.processor.processor import Encoded, Picture


class Place(NamedTuple):
    """Where a picture stands.

    Attributes:
        start: the first of its places in the prompt.
        num_places: how many it takes.
        num_features: how many it has.
    """

    picture: Picture
    start: int
    num_places: int
    num_features: int


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt before its pictures are opened.

    Attributes:
        ids: in a picture's places, the image token's.
        places: of the pictures, in reading order.
    """

    ids: list[int]
    places: list[Place]

    @classmethod
    def of(cls, encoded: Encoded, image_token_id: int, visual_tokens: int | None) -> Prompt:
        """Return what is to be read of an encoded conversation.

        Args:
            image_token_id: the id in a picture's places.
            visual_tokens: places that a picture takes at most; None for all.
        """
        ids: list[int] = []
        places, done = [], 0
        for picture, num_features in zip(encoded.images, encoded.places, strict=True):
            start = encoded.ids.index(image_token_id, done)
            ids += encoded.ids[done:start]
            num_places = min(num_features, visual_tokens or num_features)
            places.append(Place(picture, len(ids), num_places, num_features))
            ids += [image_token_id] * num_places
            done = start + num_features
        return cls(ids + encoded.ids[done:], places)


class Content:
    """The tokens of a sequence, prompt and answer, and what stands in its picture places.

    Attributes:
        ids: of the tokens so far; in a picture's places, the image token's.
        pictures: in the order of their places.
        keys: of the blocks that are full; each stands for all tokens up to its block's end.
        num_hidden: features of the pictures that are not shown.
    """

    def __init__(self, ids: Sequence[int], pictures: Sequence[Opened]) -> None:
        self.ids: list[int] = []
        self.pictures = list(pictures)
        self.keys: list[Key] = []
        self.num_hidden = sum(part.num_features - part.num_places for part in pictures)
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

    def positions(self, first: int, end: int, seen: Mapping[bytes, Seen]) -> Tensor:
        """Return the positions of the tokens from `first` to before `end`, int64.

        Features that are not shown leave their positions free: those that are keep their own.

        Args:
            seen: what is shown of the pictures among these tokens, by their digests.
        """
        positions = torch.arange(first, end)
        for picture in self.pictures:
            num_hidden = picture.num_features - picture.num_places
            kept = seen[picture.digest].kept if picture.digest in seen else None
            places = _within(picture, first, end)
            if places and kept is not None:
                low, high = places.start - picture.start, places.stop - picture.start
                begin = positions[places.start - first] - low  # of the picture's first feature
                positions[places.start - first : places.stop - first] = begin + kept[low:high].cpu()
            positions[max(0, picture.start + picture.num_places - first) :] += num_hidden
        return positions

    def pictures_between(self, first: int, end: int) -> list[Opened]:
        """Return the pictures that have places from `first` to before `end`."""
        return [part for part in self.pictures if len(_within(part, first, end))]


def _within(picture: Opened, first: int, end: int) -> range:
    """The places of a picture from `first` to before `end`."""
    return range(max(first, picture.start), min(end, picture.start + picture.num_places))
