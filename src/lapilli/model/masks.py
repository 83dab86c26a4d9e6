"""Who may look at whom."""

# B rows, T queries, S keys

from __future__ import annotations

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
