"""Pictures by what they show: digests of their pixels, and features kept for the next question."""

# P features of one picture, D width

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
        count: how many places it takes.
    """

    image: Image.Image
    is_cut: bool
    digest: bytes
    start: int
    count: int


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
        self._features: OrderedDict[bytes, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._features)

    def get(self, key: bytes) -> Tensor | None:
        """Return the (P, D) features of a picture; None where they are not kept."""
        found = self._features.get(key)
        if found is not None:
            self._features.move_to_end(key)
        return found

    def put(self, key: bytes, features: Tensor) -> None:
        """Keep (P, D) features; those not used for the longest time make room."""
        if key in self._features or features.nbytes > self.max_bytes:
            return
        self._features[key] = features
        self.num_bytes += features.nbytes
        while self.num_bytes > self.max_bytes:
            _, oldest = self._features.popitem(last=False)
            self.num_bytes -= oldest.nbytes

    def forget(self) -> None:
        """Keep nothing."""
        self._features.clear()
        self.num_bytes = 0
