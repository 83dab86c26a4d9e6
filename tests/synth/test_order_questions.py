"""Questions of order and size: every answer about one known scene is looked up by hand."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from lapilli.synth.order_rules import order, size
from lapilli.synth.symbols import Symbols, Thing
from lapilli.synth.view import Asked, View

STAR = Thing("star", (0.05, 0.40, 0.15, 0.50), "yellow", "small")
RING = Thing("ring", (0.35, 0.05, 0.55, 0.25), "blue", "small")
HEART = Thing("heart", (0.60, 0.60, 0.95, 0.95), "red", "large")
WORDS = {"the yellow star": STAR, "the blue ring": RING, "the red heart": HEART,
         "the star": STAR, "the ring": RING, "the heart": HEART}  # fmt: skip
ORDERS = {
    "from left to right": [STAR, RING, HEART], "from right to left": [HEART, RING, STAR],
    "from top to bottom": [RING, STAR, HEART], "from bottom to top": [HEART, STAR, RING],
    "from small to large": [STAR, RING, HEART], "from large to small": [HEART, RING, STAR],
}  # fmt: skip


def told(rule: Callable[[random.Random, View], Asked | None], *things: Thing) -> list[Asked]:
    """What a rule asks of things, over many draws."""
    rng, view = random.Random(0), View(Symbols(things), held_out=False)
    return [asked for asked in (rule(rng, view) for _ in range(600)) if asked]


def listed(answer: str) -> list[Thing]:
    return [WORDS[words] for words in answer.replace(" and ", ", ").split(", ")]


def test_things_are_put_in_order() -> None:
    seen: set[Any] = set()
    for asked in told(order, RING, HEART, STAR):
        slots = asked.slots
        end = slots.get("end")
        seen.add((asked.form, end or slots["way"]))
        if end is None:
            assert listed(asked.answer) == ORDERS[slots["way"]]
            continue
        first = {"left": STAR, "right": HEART, "top": RING, "bottom": HEART}[end]
        thing = WORDS[asked.answer]
        if asked.form == "outermost":
            assert thing == first
        else:
            ways = {"left": "from left to right", "right": "from right to left",
                    "top": "from top to bottom", "bottom": "from bottom to top"}  # fmt: skip
            ranks = [ORDERS[ways[end]].index(WORDS[slots[key]]) for key in ("a", "b")]
            assert asked.answer == slots["a" if ranks[0] < ranks[1] else "b"]
    ends = ("left", "right", "top", "bottom")
    assert seen == {("listed", way) for way in ORDERS} | {
        (form, end) for form in ("outermost", "further") for end in ends
    }


def test_no_order_is_asked_of_what_is_level() -> None:
    level = replace(STAR, name="cross", box=(0.35, 0.40, 0.45, 0.50))
    asked = told(order, STAR, level)
    ways = {a.slots.get("way") or a.slots["end"] for a in asked}
    assert ways == {"from left to right", "from right to left", "left", "right"}


def test_things_that_cannot_be_told_apart_are_not_named() -> None:
    twin = replace(STAR, box=(0.75, 0.10, 0.85, 0.20))
    for asked in told(order, STAR, twin, HEART):
        assert "star" not in asked.answer


def test_the_size_is_told_of_what_has_one() -> None:
    for asked in told(size, STAR, HEART):
        assert asked.answer == WORDS[asked.slots["a"]].size
    assert not told(size, replace(STAR, size=None))


@pytest.mark.parametrize("rule", [order, size])
def test_nothing_is_asked_of_an_empty_picture(
    rule: Callable[[random.Random, View], Asked | None],
) -> None:
    assert told(rule) == []
