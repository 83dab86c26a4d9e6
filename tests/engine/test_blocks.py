from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lapilli.engine.blocks import BlockPool
from lapilli.errors import EngineError


def test_blocks_that_nobody_holds_are_found_again() -> None:
    pool = BlockPool(4)
    blocks = pool.take(3)
    for block, key in zip(blocks, (b"a", b"b", b"c"), strict=True):
        pool.name(block, key)
    pool.let_go(blocks)
    assert pool.num_free == 4
    assert pool.find([b"a", b"b", b"x"]) == blocks[:2]


def test_the_longest_unused_gives_way_and_ends_go_before_beginnings() -> None:
    pool = BlockPool(4)
    old, new = pool.take(2), pool.take(2)
    for block, key in zip([*old, *new], (b"a", b"b", b"c", b"d"), strict=True):
        pool.name(block, key)
    pool.let_go(old)
    pool.let_go(new)
    taken = pool.take(1)
    assert taken == old[1:]
    assert pool.find([b"a", b"b"]) == old[:1]
    assert pool.find([b"c", b"d"]) == new


def test_held_blocks_never_give_way() -> None:
    pool = BlockPool(3)
    shared = pool.take(2)
    pool.name(shared[0], b"a")
    pool.hold(shared[:1])
    pool.let_go(shared)
    assert pool.num_free == 2
    with pytest.raises(EngineError, match="3 blocks are wanted, 2 are free"):
        pool.take(3)
    assert shared[0] not in pool.take(2)


def test_blocks_lie_together_where_they_can() -> None:
    pool = BlockPool(10)
    first, second = pool.take(3), pool.take(3)
    assert (first, second) == ([0, 1, 2], [3, 4, 5])
    pool.let_go(first)
    assert pool.take(4) == [6, 7, 8, 9]  # not 0, 1, 2 and one elsewhere
    assert pool.take(2, after=5) == [0, 1]  # none behind it is free


def test_a_sequence_goes_on_where_it_ended() -> None:
    pool = BlockPool(10)
    blocks = pool.take(3)
    pool.let_go(blocks[2:])
    assert pool.take(2, after=blocks[1]) == [2, 3]


def test_what_was_forgotten_is_not_found() -> None:
    pool = BlockPool(2)
    (block,) = pool.take(1)
    pool.name(block, b"a")
    pool.let_go([block])
    pool.forget()
    assert pool.find([b"a"]) == []
    assert pool.num_free == 2


@given(st.integers(0, 10_000))
def test_no_block_is_ever_lost_or_held_twice_without_being_shared(seed: int) -> None:
    dice, pool = random.Random(seed), BlockPool(12)
    held: list[list[int]] = []
    names = 0
    for _ in range(60):
        if held and dice.random() < 0.45:
            pool.let_go(held.pop(dice.randrange(len(held))))
        elif held and dice.random() < 0.3:
            shared = dice.choice(held)[:1]
            pool.hold(shared)
            held.append(shared)
        elif (count := dice.randint(1, 4)) <= pool.num_free:
            before = {block for blocks in held for block in blocks}
            blocks = pool.take(count, after=dice.randrange(-1, 12))
            assert len(set(blocks)) == count
            assert not before & set(blocks)
            held.append(blocks)
            for block in blocks:
                names += 1
                pool.name(block, str(names).encode())
    assert pool.num_free == 12 - len({block for blocks in held for block in blocks})
