"""Batches of conversations: groups of records, in the order of a run, packed into rows."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
from PIL import Image

from lapilli.data.augment import Augmentation, augment
from lapilli.data.packing import Bundle, bundle, collate, pack
from lapilli.data.records import Records
from lapilli.errors import DataError, PromptError
from lapilli.inputs import IGNORE, Inputs
from lapilli.messages import Message, Sample, TextPart
from lapilli.processor.processor import Encoded, Picture, Processor


class Groups:
    """A file of records, taken a group (a picture with its conversations) at a time.

    Args:
        changes: how pictures are changed at random.
        is_blind: leave the pictures out.
    """

    def __init__(
        self, records: Records, changes: Augmentation | None = None, *, is_blind: bool = False
    ) -> None:
        self.records = records
        self.is_blind = is_blind
        self.changes = changes or Augmentation()
        keys = (records.group(index) for index in range(len(records)))
        sizes = [len(list(same)) for _, same in itertools.groupby(keys)]
        self._edges = np.concatenate([[0], np.cumsum(sizes)])

    def __len__(self) -> int:
        return len(self._edges) - 1

    def __getitem__(self, index: int) -> list[Sample]:
        samples = [self.records[i] for i in range(self._edges[index], self._edges[index + 1])]
        return [_without_pictures(s) for s in samples] if self.is_blind else samples


def _without_pictures(sample: Sample) -> Sample:
    words = tuple(
        Message(m.role, tuple(part for part in m.parts if isinstance(part, TextPart)))
        for m in sample.conversation
    )
    return replace(sample, conversation=words)


def encode(sample: Sample, processor: Processor) -> Encoded:
    """Return a record's tokens.

    Raises:
        DataError: nothing in it is supervised, or it is longer than the context.
    """
    if sample.text:
        return processor.encode_text(sample.text)
    try:
        encoded = processor.encode(sample.conversation)
    except PromptError as error:
        raise DataError(f"record {sample.id}: {error}") from error
    if all(label == IGNORE for label in encoded.labels):
        raise DataError(f"record {sample.id}: no words of an assistant to learn. Remove it.")
    return encoded


def bundle_group(
    samples: list[Sample], processor: Processor, max_tokens: int, rng: np.random.Generator | None
) -> Bundle:
    """Return a group as one bundle; which conversations fit is left to chance, if there is any."""
    rows = [encode(sample, processor) for sample in samples]
    if rng is not None:
        rows = [rows[i] for i in rng.permutation(len(rows))]
    return bundle(rows, max_tokens, processor.image_token_id)


def make_batch(
    groups: list[tuple[Groups, int]],
    processor: Processor,
    max_tokens: int,
    rng: np.random.Generator | None,
) -> Inputs:
    """Return packed inputs of the named groups.

    Args:
        groups: sources and indices into them.
        rng: for the choice of conversations and the change of pictures; None for neither.

    Raises:
        DataError: pictures are to be changed that the model cuts.
    """
    bundles = []
    for source, index in groups:
        item = bundle_group(source[index], processor, max_tokens, rng)
        item.images = [(picture, source.changes) for picture in item.images]
        bundles.append(item)
    inputs, images = collate(pack(bundles, max_tokens))
    opened = (
        (_open(picture, changes, processor, rng), picture.is_cut) for picture, changes in images
    )
    return processor.with_pictures(inputs, opened)


def _open(
    picture: Picture,
    changes: Augmentation,
    processor: Processor,
    rng: np.random.Generator | None,
) -> Image.Image:
    image = processor.open(picture)
    if rng is None or changes == Augmentation():
        return image
    if picture.is_cut:  # its places were counted from the size that it has
        raise DataError(
            f"{picture}: the model cuts pictures by their size, so they are not changed at random. "
            "Remove min_area, is_mirrored and light from the recipe's sources."
        )
    return augment(image, (), changes, processor.images.size_px, rng)[0]
