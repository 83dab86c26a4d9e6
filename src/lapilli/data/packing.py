"""Packed rows: many conversations side by side in one sequence, none seeing another.

Conversations about one picture share it: the prefix that they have in common (the trunk) stands in
the row once, and each conversation is a branch that sees the trunk and itself. Ten questions about
a picture then cost one picture and ten questions, and give the gradients of ten conversations.
"""

# T tokens

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lapilli.errors import DataError
from lapilli.inputs import IGNORE, Inputs
from lapilli.processor.processor import Encoded


@dataclass
class Bundle:
    """Conversations with a common prefix, laid out one after another.

    Attributes:
        ids, labels, positions, branches: (T,) each; branch 0 is the trunk.
        images: sources of the pictures, in the order of their places.
    """

    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    branches: list[int] = field(default_factory=list)
    images: list[Any] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def _add(self, row: Encoded, start: int, end: int, branch: int) -> None:
        self.ids += row.ids[start:end]
        labels = row.labels[start:end]
        if start == 0 < end:
            labels[0] = IGNORE  # nothing comes before it from which it could be told
        self.labels += labels
        self.positions += range(start, end)
        self.branches += [branch] * (end - start)


def bundle(rows: Sequence[Encoded], max_tokens: int, image_token_id: int) -> Bundle:
    """Lay out conversations one after another; those that do not fit are left out.

    What all begin with stands there once, if it holds all of their pictures. A first conversation
    that is too long is cut.

    Args:
        max_tokens: length of the result at most.
        image_token_id: keeps a picture's places.

    Raises:
        DataError: a picture of the first conversation does not fit.
    """
    if image_token_id in rows[0].ids[max_tokens:]:
        raise DataError(
            f"{rows[0].images[-1]}: this picture and the words before it need more than the "
            f"{max_tokens} tokens of a row. Raise data.row_tokens."
        )
    trunk = min(_trunk_length(rows, image_token_id), max_tokens)
    result = Bundle()
    if trunk:
        result._add(rows[0], 0, trunk, 0)
        result.images += rows[0].images
    for index, row in enumerate(rows):
        end = len(row.ids) if index else min(len(row.ids), max_tokens)
        if len(result) + end - trunk > max_tokens:
            continue
        # A lone conversation needs no branch of its own.
        result._add(row, trunk, end, index + 1 if len(rows) > 1 else 0)
        if not trunk:
            result.images += row.images
    return result


def _trunk_length(rows: Sequence[Encoded], image_token_id: int) -> int:
    """Return how many tokens all rows begin with, all pictures among them; 0 for no such start."""
    first = rows[0]
    if len(rows) == 1:
        return 0
    # A branch begins with a token that is not learned: in the row, another branch comes before it.
    end = min(_num_before_labels(row) for row in rows) - 1
    for row in rows[1:]:
        end = next((i for i in range(end) if row.ids[i] != first.ids[i]), end)
    end = max(end, 0)
    is_shared = all(
        row.images == first.images and image_token_id not in row.ids[end:] for row in rows
    )
    return end if is_shared else 0


def _num_before_labels(row: Encoded) -> int:
    return next((i for i, label in enumerate(row.labels) if label != IGNORE), len(row.ids))


def pack(bundles: Sequence[Bundle], max_tokens: int) -> list[list[Bundle]]:
    """Put bundles into rows of at most `max_tokens`, first fit from the longest."""
    rows: list[list[Bundle]] = []
    room: list[int] = []
    for item in sorted(bundles, key=len, reverse=True):
        fit = next((i for i, left in enumerate(room) if left >= len(item)), None)
        if fit is None:
            rows.append([])
            room.append(max_tokens)
            fit = len(rows) - 1
        rows[fit].append(item)
        room[fit] -= len(item)
    return rows


def collate(rows: Sequence[Sequence[Bundle]]) -> tuple[Inputs, list[Any]]:
    """Return packed inputs with labels, padded on the right, and the pictures' sources in order."""
    length = max(sum(len(item) for item in row) for row in rows)
    shape = len(rows), length
    ids, positions = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    groups, branches = torch.full(shape, -1), torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORE)
    images: list[Any] = []
    for index, row in enumerate(rows):
        start = 0
        for group, item in enumerate(row):
            where = slice(start, start + len(item))
            ids[index, where] = torch.tensor(item.ids)
            positions[index, where] = torch.tensor(item.positions)
            branches[index, where] = torch.tensor(item.branches)
            labels[index, where] = torch.tensor(item.labels)
            groups[index, where] = group
            images += item.images
            start += len(item)
    return Inputs(ids, positions, groups, branches, labels=labels), images
