"""Pictures by what they show: digests of their pixels, and features kept for the next question."""

# P features that are shown of one picture, D width

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class Opened:
    """A picture of a prompt, opened.

    Attributes:
        image: RGB, upright.
        is_cut: it is seen in tiles, too.
        digest: stands for the pixels, their shape, and all that decides how they are prepared.
        start: the first of its places in the prompt.
        num_places: how many it takes.
        num_features: how many it has; more than places where only some are shown.
    """

    image: Image.Image
    is_cut: bool
    digest: bytes
    start: int
    num_places: int
    num_features: int


@dataclass(frozen=True, slots=True)
class Seen:
    """What the language model sees of a picture.

    Attributes:
        features: (P, D).
        kept: (P,) int64, which of all features they are; None for all.
    """

    features: Tensor
    kept: Tensor | None = None

    @property
    def num_bytes(self) -> int:
        """What it takes."""
        return self.features.nbytes + (0 if self.kept is None else self.kept.nbytes)


def digest(image: Image.Image, settings: str) -> bytes:
    """Return 128 bits that no two pictures, shapes or settings share.

    Args:
        settings: all else that decides what the model sees, as text.
    """
    about = f"{settings} {image.mode} {image.width}x{image.height}".encode()
    result = hashlib.blake2b(digest_size=DIGEST_BYTES)
    result.update(len(about).to_bytes(8, "little"))
    result.update(about)
    result.update(image.tobytes())
    return result.digest()


class FeatureCache:
    """The features of pictures that were seen, those used last; bounded in bytes.

    Args:
        max_bytes: 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._seen: OrderedDict[bytes, Seen] = OrderedDict()

    def __len__(self) -> int:
        return len(self._seen)

    def get(self, key: bytes) -> Seen | None:
        """Return what is seen of a picture; None where it is not kept."""
        found = self._seen.get(key)
        if found is not None:
            self._seen.move_to_end(key)
        return found

    def put(self, key: bytes, seen: Seen) -> None:
        """Keep what is seen of a picture; those not used for the longest time make room."""
        if key in self._seen or seen.num_bytes > self.max_bytes:
            return
        self._seen[key] = seen
        self.num_bytes += seen.num_bytes
        while self.num_bytes > self.max_bytes:
            _, oldest = self._seen.popitem(last=False)
            self.num_bytes -= oldest.num_bytes

    def forget(self) -> None:
        """Keep nothing."""
        self._seen.clear()
        self.num_bytes = 0
