from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lapilli.model.masks import causal_mask, packed_mask, window_mask

# B rows, T queries, S keys

CPU = torch.device("cpu")


def drawn(mask: Tensor) -> list[str]:
    """The mask of one row as text, x where a token may look."""
    return ["".join("x" if here else "." for here in line) for line in mask.tolist()]


def test_a_token_sees_what_stands_before_it_in_its_own_group() -> None:
    mask = packed_mask(torch.tensor([[0, 0, 1, 1, 1]]))
    assert drawn(mask[0, 0]) == ["x....", "xx...", "..x..", "..xx.", "..xxx"]


def test_padding_sees_padding_alone_and_is_seen_by_nobody() -> None:
    mask = packed_mask(torch.tensor([[-1, -1, 0, 0]]))
    assert drawn(mask[0, 0]) == ["x...", "xx..", "..x.", "..xx"]


def test_a_branch_sees_the_trunk_and_itself() -> None:
    groups = torch.zeros(1, 6, dtype=torch.long)
    mask = packed_mask(groups, torch.tensor([[0, 0, 1, 1, 2, 2]]))
    assert drawn(mask[0, 0]) == ["x.....", "xx....", "xxx...", "xxxx..", "xx..x.", "xx..xx"]


def test_branches_of_one_number_in_two_groups_are_strangers() -> None:
    mask = packed_mask(torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 1, 0, 1]]))
    assert drawn(mask[0, 0]) == ["x...", "xx..", "..x.", "..xx"]


def test_rows_of_a_batch_have_masks_of_their_own() -> None:
    mask = packed_mask(torch.tensor([[0, 0], [0, 1]]))
    assert mask.shape == (2, 1, 2, 2)
    assert drawn(mask[0, 0]) == ["x.", "xx"]
    assert drawn(mask[1, 0]) == ["x.", ".x"]


def test_a_window_counts_the_token_itself() -> None:
    mask = causal_mask(4, 0, 2, CPU)
    assert mask is not None
    assert drawn(mask) == ["x...", "xx..", ".xx.", "..xx"]


def test_a_window_beside_other_branches_counts_positions_rather_than_places() -> None:
    groups = torch.zeros(1, 5, dtype=torch.long)
    branches = torch.tensor([[0, 0, 1, 1, 2]])
    positions = torch.tensor([[0, 1, 2, 3, 2]])  # the second branch goes on where the trunk ends
    mask = packed_mask(groups, branches) & window_mask(positions, 2)
    assert drawn(mask[0, 0]) == ["x....", "xx...", ".xx..", "..xx.", ".x..x"]


def test_new_tokens_see_all_that_was_seen_before_them() -> None:
    mask = causal_mask(2, 3, None, CPU)
    assert mask is not None
    assert drawn(mask) == ["xxxx.", "xxxxx"]


def test_new_tokens_behind_a_window_see_its_width() -> None:
    mask = causal_mask(2, 3, 3, CPU)
    assert mask is not None
    assert drawn(mask) == [".xxx.", "..xxx"]
    last = causal_mask(1, 4, 3, CPU)
    assert last is not None
    assert drawn(last) == ["..xxx"]


@pytest.mark.parametrize(("num_new", "num_seen"), [(5, 0), (1, 7), (1, 0)])
@pytest.mark.parametrize("window", [None, 8])
def test_no_mask_is_made_where_attention_knows_the_order(
    num_new: int, num_seen: int, window: int | None
) -> None:
    assert causal_mask(num_new, num_seen, window, CPU) is None
