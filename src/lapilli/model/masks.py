"""Who may look at whom."""

# B rows, T queries, S keys

from __future__ import annotations

import torch
from torch import Tensor


def packed_mask(groups: Tensor, branches: Tensor | None = None) -> Tensor:
    """Return the mask of rows that hold groups (conversations) and branches side by side.

    A token looks back at its own group's trunk (branch 0) and at its own branch. A padded token
    (group -1) looks at the padding before it, so that no row of the softmax is empty.

    Args:
        groups: (B, T) int64, -1 for padding.
        branches: (B, T) int64, 0 for the trunk; None where nothing branches.

    Returns:
        (B, 1, T, T) bool, true where the row's token may look at the column's.
    """
    length = groups.shape[1]
    order = groups.new_ones(length, length).tril().bool()
    mask = (groups[:, :, None] == groups[:, None, :]) & order
    if branches is not None:
        is_same = branches[:, :, None] == branches[:, None, :]
        mask &= is_same | (branches == 0)[:, None, :]
    return mask[:, None]


def window_mask(positions: Tensor, window: int) -> Tensor:
    """Return the mask of a sliding window, to be joined with one that knows order and groups.

    It counts positions, not places in the row: a branch may stand far from its trunk.

    Args:
        positions: (B, T) int64.
        window: positions a token sees, its own among them.

    Returns:
        (B, 1, T, T) bool.
    """
    return (positions[:, :, None] - positions[:, None, :] < window)[:, None]


def causal_mask(
    num_new: int, num_seen: int, window: int | None, device: torch.device
) -> Tensor | None:
    """Return the mask of new tokens behind seen ones, all of them one sequence.

    Args:
        num_new: T tokens that look.
        num_seen: tokens before them; S is both together.
        window: positions a token sees, its own among them; None for all.

    Returns:
        (T, S) bool, true where a new token may look. None where attention needs no mask to know:
        for a sequence from its start, or one new token that sees everything.
    """
    num_all = num_new + num_seen
    if (window is None or num_all <= window) and (num_new == 1 or num_seen == 0):
        return None
    mask = torch.ones(num_new, num_all, dtype=torch.bool, device=device).tril(num_seen)
    return mask if window is None else mask.triu(num_seen - window + 1)
