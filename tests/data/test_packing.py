"""Packed rows: what is shared stands there once, and nothing is lost or seen by others."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lapilli.data.packing import Bundle, bundle, collate, pack
from lapilli.errors import DataError
from lapilli.inputs import IGNORE
from lapilli.processor.processor import Encoded

IMAGE = 5
"""The id that keeps a picture's places."""


def talk(ids: list[int], num_unlearned: int, *images: str) -> Encoded:
    return Encoded(ids, [IGNORE] * num_unlearned + ids[num_unlearned:], list(images))


PICTURE = [1, IMAGE, IMAGE]
FIRST = talk([*PICTURE, 10, 11, 20, 21], 5, "a.png")
SECOND = talk([*PICTURE, 10, 12, 13, 22], 6, "a.png")
THIRD = talk([*PICTURE, 14, 23], 4, "a.png")


def test_conversations_about_a_picture_share_it() -> None:
    made = bundle([FIRST, SECOND, THIRD], 100, IMAGE)
    assert made.ids == [*PICTURE, 10, 11, 20, 21, 10, 12, 13, 22, 14, 23]
    assert made.branches == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3]
    assert made.positions == [0, 1, 2, 3, 4, 5, 6, 3, 4, 5, 6, 3, 4]
    assert made.labels == [IGNORE] * 5 + [20, 21] + [IGNORE] * 3 + [22, IGNORE, 23]
    assert made.images == ["a.png"]


def test_a_branch_begins_with_a_token_that_is_not_learned() -> None:
    same = [talk([1, 2, 3, 30], 3), talk([1, 2, 3, 31], 3)]
    made = bundle(same, 100, IMAGE)
    assert made.ids == [1, 2, 3, 30, 3, 31]
    assert made.branches == [0, 0, 1, 1, 2, 2]
    assert made.labels == [IGNORE, IGNORE, IGNORE, 30, IGNORE, 31]


def test_conversations_that_share_too_little_stand_apart() -> None:
    other = talk([1, IMAGE, IMAGE, 10, 20], 4, "b.png")
    made = bundle([FIRST, other], 100, IMAGE)
    assert made.ids == FIRST.ids + other.ids
    assert made.branches == [1] * 7 + [2] * 5
    assert made.positions == [*range(7), *range(5)]
    assert made.images == ["a.png", "b.png"]


def test_a_later_picture_keeps_conversations_apart() -> None:
    two = talk([1, IMAGE, 2, IMAGE, 20], 4, "a.png", "a.png")
    other = talk([1, IMAGE, 3, IMAGE, 21], 4, "a.png", "a.png")
    made = bundle([two, other], 100, IMAGE)
    assert made.ids == two.ids + other.ids
    assert made.images == ["a.png"] * 4


def test_a_lone_conversation_has_no_branch() -> None:
    made = bundle([FIRST], 100, IMAGE)
    assert (made.ids, made.labels, made.images) == (FIRST.ids, FIRST.labels, ["a.png"])
    assert set(made.branches) == {0}


def test_the_first_token_of_a_text_is_not_learned() -> None:
    text = Encoded([7, 8, 9], [7, 8, 9])
    assert bundle([text], 100, IMAGE).labels == [IGNORE, 8, 9]
    assert text.labels == [7, 8, 9]


def test_what_does_not_fit_is_left_out_and_a_first_one_is_cut() -> None:
    assert bundle([FIRST, SECOND, THIRD], 9, IMAGE).ids == [*FIRST.ids, 14, 23]
    assert bundle([FIRST, SECOND], 6, IMAGE).ids == FIRST.ids[:6]
    cut = bundle([FIRST], 6, IMAGE)
    assert (cut.ids, cut.labels) == (FIRST.ids[:6], FIRST.labels[:6])


def test_a_picture_that_does_not_fit_is_refused_with_a_remedy() -> None:
    with pytest.raises(
        DataError, match=r"a.png: this picture .* 2 tokens .* Raise data.row_tokens"
    ):
        bundle([FIRST], 2, IMAGE)


@given(st.lists(st.integers(1, 20), max_size=30))
def test_rows_hold_every_bundle_within_their_length(lengths: list[int]) -> None:
    bundles = [Bundle(ids=[number] * length) for number, length in enumerate(lengths)]
    rows = pack(bundles, 20)
    assert sorted(id(b) for row in rows for b in row) == sorted(map(id, bundles))
    assert all(sum(map(len, row)) <= 20 for row in rows)
    # No two rows could be one.
    assert len(rows) < 2 or sum(sorted(sum(map(len, row)) for row in rows)[:2]) > 20


def test_rows_are_padded_on_the_right() -> None:
    rows = [[bundle([FIRST, SECOND], 20, IMAGE), bundle([talk([8, 9], 1)], 20, IMAGE)]]
    rows += [[bundle([talk([1, IMAGE, IMAGE, 2], 3, "b.png")], 20, IMAGE)]]
    inputs, images = collate(rows)
    assert images == ["a.png", "b.png"]
    assert inputs.input_ids.tolist() == [
        [*PICTURE, 10, 11, 20, 21, 12, 13, 22, 8, 9],
        [1, IMAGE, IMAGE, 2] + [0] * 8,
    ]
    assert inputs.groups.tolist() == [[0] * 10 + [1] * 2, [0] * 4 + [-1] * 8]
    assert inputs.labels is not None
    assert (inputs.labels[inputs.groups < 0] == IGNORE).all()
    assert inputs.positions[0, -2:].tolist() == [0, 1]
    assert inputs.branches is not None and inputs.branches.dtype == torch.long
