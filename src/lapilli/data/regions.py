"""Batches for vision pretraining: pictures, and for each patch what stands there and where it ends.

An object's attributes ("name", "color", "size", ...) are kept apart in slots, so that a colour is
learned once for all shapes. A patch belongs to the object that covers most of it.
"""

# B pictures, P patches, S slots, W words of a slot

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

SLOTS = ("name", "color", "size", "fine")
BACKGROUND_WEIGHT = 0.3
UNKNOWN = -100
"""Class of a patch whose attribute is not known; carries no loss."""


@dataclass(frozen=True)
class Vocabulary:
    """The words of each slot; word 0 of "name" is the background."""

    words: dict[str, tuple[str, ...]]

    @classmethod
    def gather(cls, objects: Iterable[dict[str, Any]]) -> Vocabulary:
        """Collect the words that occur, in alphabetical order."""
        counts: dict[str, Counter[str]] = {slot: Counter() for slot in SLOTS}
        for thing in objects:
            for slot in SLOTS:
                if thing.get(slot):
                    counts[slot][thing[slot]] += 1
        words = {slot: tuple(sorted(counter)) for slot, counter in counts.items() if counter}
        words["name"] = ("background", *words.get("name", ()))
        return cls(words)

    def classes(self, thing: dict[str, Any]) -> dict[str, int]:
        """Return the class of an object in each slot, UNKNOWN where it has none."""
        return {
            slot: words.index(thing[slot]) if thing.get(slot) in words else UNKNOWN
            for slot, words in self.words.items()
        }


def patch_targets(
    objects: Iterable[dict[str, Any]], vocabulary: Vocabulary, grid: int, *, is_complete: bool
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Return for each patch the classes of its object, the object's box, and the patch's weight.

    Args:
        objects: dictionaries with "box" (x1, y1, x2, y2 in 0-1) and words for some slots.
        grid: patches along one side.
        is_complete: all objects are listed, so a patch without one is background.

    Returns:
        classes: slot -> (P,) int64, UNKNOWN where nothing is known.
        boxes: (P, 4) float32, x1, y1, x2, y2 of the object in 0-1; NaN where there is none. Bounds
            in the picture, not distances from the patch: a decoder reads places off them.
        weights: (P,) float32; an object of n patches counts as sqrt(n), so that a small star is
            not drowned by a photograph that fills the picture, nor by the background.
    """
    num_patches = grid * grid
    classes = {slot: np.full(num_patches, UNKNOWN) for slot in vocabulary.words}
    if is_complete:
        classes["name"][:] = 0
    boxes = np.full((num_patches, 4), np.nan, dtype=np.float32)
    owners = np.zeros(num_patches, dtype=np.int64)
    best = np.full(num_patches, 0.2)  # an object owns patches of which it covers a fifth or more
    edges = np.arange(grid) / grid
    side = 1 / grid
    for number, thing in enumerate(objects, start=1):
        x1, y1, x2, y2 = thing["box"]
        across = np.clip(np.minimum(edges + side, x2) - np.maximum(edges, x1), 0, None)
        down = np.clip(np.minimum(edges + side, y2) - np.maximum(edges, y1), 0, None)
        smaller = min(side * side, max((x2 - x1) * (y2 - y1), 1e-6))
        share = (down[:, None] * across[None, :]).ravel() / smaller  # (P,)
        is_owner = share > best
        best[is_owner] = share[is_owner]
        owners[is_owner] = number
        for slot, value in vocabulary.classes(thing).items():
            classes[slot][is_owner] = value
        boxes[is_owner] = thing["box"]
    weights = 1 / np.sqrt(np.bincount(owners)[owners])
    weights[owners == 0] *= BACKGROUND_WEIGHT
    return classes, boxes, weights.astype(np.float32)
