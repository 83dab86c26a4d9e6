"""Questions that put things in order: of all by place or size, of two by place, of one by size.

An answer that lists all things tells a learner of every pair at once, where "left" tells of one.
"""

from __future__ import annotations

import random
from itertools import pairwise

from lapilli.synth.scene_rules import MIN_OFFSET, clearly_differ, side_of
from lapilli.synth.view import Asked, View, is_unseen
from lapilli.synth.words import join

MIN_STEP = 0.05
"""Things in a list of all are at least so far apart along its axis."""
MOST_LISTED = 5
AXES = {"from left to right": 0, "from right to left": 0,
        "from top to bottom": 1, "from bottom to top": 1}  # fmt: skip
BACKWARDS = ("from right to left", "from bottom to top")
ENDS = {"left": (0, -1), "right": (0, 1), "top": (1, -1), "bottom": (1, 1)}


def order(rng: random.Random, view: View) -> Asked | None:
    """All things in order, the outermost one, or which of two is further to a side."""
    return rng.choice((_listed, _listed, _outermost, _further))(rng, view)


def _listed(rng: random.Random, view: View) -> Asked | None:
    if not 2 <= len(view.things) <= MOST_LISTED:
        return None
    way = rng.choice((*AXES, "from small to large", "from large to small"))
    if way in AXES:
        axis = AXES[way]
        told = sorted(view.things, key=lambda t: t.center[axis])
        if any(b.center[axis] - a.center[axis] < MIN_STEP for a, b in pairwise(told)):
            return None
    else:
        told = sorted(view.things, key=lambda t: t.area)
        if not all(clearly_differ(a, b) for a, b in pairwise(told)):
            return None
    if way in (*BACKWARDS, "from large to small"):
        told.reverse()
    names = [view.refer(rng, thing, size=False) for thing in told]
    listed = [name for name in names if name]
    if len(listed) < len(told):
        return None
    return Asked("listed", {"way": way}, join(listed), {"unseen": bool(view.unseen)})


def _outermost(rng: random.Random, view: View) -> Asked | None:
    if len(view.things) < 2:
        return None
    end = rng.choice(tuple(ENDS))
    axis, sign = ENDS[end]
    told = sorted(view.things, key=lambda t: -sign * t.center[axis])
    first, second = told[:2]
    ref = view.refer(rng, first, size=False)
    if ref is None or abs(first.center[axis] - second.center[axis]) <= MIN_OFFSET:
        return None
    return Asked("outermost", {"end": end}, ref, {"unseen": is_unseen(first)})


def _further(rng: random.Random, view: View) -> Asked | None:
    pair = view.two_things(rng)
    if pair is None:
        return None
    a, b = pair
    end = rng.choice(tuple(ENDS))
    axis, sign = ENDS[end]
    first, second = view.refer(rng, a, size=False), view.refer(rng, b, size=False)
    if first is None or second is None or side_of(a, b, axis) is None:
        return None
    wins = sign * (a.center[axis] - b.center[axis]) > 0
    slots = {"a": first, "b": second, "end": end}
    extra = {"unseen": is_unseen(a) or is_unseen(b)}
    return Asked("further", slots, first if wins else second, extra)


def size(rng: random.Random, view: View) -> Asked | None:
    """Is the thing small or large?"""
    thing = view.some_thing(rng)
    if thing is None or thing.size is None:
        return None
    ref = view.refer(rng, thing, size=False)
    return Asked("size", {"a": ref}, thing.size, {"unseen": is_unseen(thing)}) if ref else None
