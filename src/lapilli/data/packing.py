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

from lapilli.inputs import IGNORE, Inputs
from lapilli.processor.processor import Encoded


@dataclass
class Bundle:
    """Conversations with a common prefix, laid out one after another.

    Attributes:
        ids, labels, positions, branches: (T,) each; branch 0 is the trunk.
        images: sources of the trunk's pictures.
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
        self.labels += row.labels[start:end]
        self.positions += range(start, end)
        self.branches += [branch] * (end - start)


def bundle(rows: Sequence[Encoded], max_tokens: int) -> Bundle:
    """Lay out conversations about the same pictures; those that do not fit are left out.

    A single conversation that is too long is cut.

    Args:
        rows: with the same pictures at the same places.
        max_tokens: length of the result at most.
    """
    result = Bundle(images=list(rows[0].images))
    trunk = _common_prefix(rows) if len(rows) > 1 else 0
    result._add(rows[0], 0, trunk, 0)
    for index, row in enumerate(rows):
        if len(result) + len(row.ids) - trunk <= max_tokens:
            # A lone conversation needs no branch of its own.
            result._add(row, trunk, len(row.ids), index + 1 if trunk else 0)
        elif index == 0:
            result._add(row, trunk, trunk + max_tokens - len(result), 1 if trunk else 0)
    if result.labels:
        result.labels[0] = IGNORE  # nothing comes before it from which it could be told
    return result


def _common_prefix(rows: Sequence[Encoded]) -> int:
    """Return how many tokens all rows begin with, none of them supervised."""
    first = rows[0]
    length = min(len(row.ids) for row in rows)
    end = next((i for i in range(length) if first.labels[i] != IGNORE), length)
    for row in rows[1:]:
        end = next((i for i in range(end) if row.ids[i] != first.ids[i]), end)
    return max(end, 0)


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
    return Inputs(ids, positions, groups, branches, None, labels), images
