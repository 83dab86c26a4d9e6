"""The nine measured kinds of question about drawn scenes and collages, by rules."""

from __future__ import annotations

import random

from lapilli.synth.names import OUTSIDE, may_be_many
from lapilli.synth.symbols import COLORS, UNSEEN_PAIRS, Thing
from lapilli.synth.view import Asked, View, is_unseen
from lapilli.synth.words import (
    article,
    counted,
    format_box,
    join,
    noun,
    phrase,
    plural,
    reading_order,
    region,
)

MIN_OFFSET = 0.12
"""Centers nearer than this along an axis are neither left nor right, above nor below."""
MIN_AREA_RATIO = 1.8
REGION_MARGIN = 0.03

OPPOSITES = {"left": "right", "right": "left", "above": "below", "below": "above"}
SIDES = {
    "left": ("left of", "to the left of"), "right": ("right of", "to the right of"),
    "above": ("above",), "below": ("below", "under"),
}  # fmt: skip


def existence(rng: random.Random, view: View) -> Asked | None:
    """Is something there? Half the answers are yes; most others are near misses."""
    wanted, luck = rng.random() < 0.5, rng.random()
    color: str | None = None
    name: str | None = None
    size = ""
    thing = view.some_thing(rng)
    if wanted:
        if thing is None:
            return None
        color, name = thing.color, thing.name
    if luck < 0.62 and view.drawn and view.colors:
        if not wanted:
            pair = view.absent_pair(rng)
            if pair is None:
                return None
            color, name = pair
    elif luck < 0.72 and thing and thing.size:
        color, name, size = thing.color, thing.name, thing.size
        if not wanted:
            size = "large" if size == "small" else "small"
            if view.sized[size, color, name]:
                return None
    elif luck < 0.9 or not view.drawn:
        color = None
        if not wanted:
            plain = view.drawn and view.symbols.background is not None
            far = plain and not view.held_out and rng.random() < 0.15
            name = rng.choice(OUTSIDE) if far else view.absent_name(rng)
    else:
        name = None
        color = color if wanted else view.absent_color(rng)
    if color is None and name is None:
        return None
    words = noun(name) if name else "object"
    words = " ".join(part for part in (size, color, words) if part)
    unseen = (color, name) in UNSEEN_PAIRS
    slots = {"an": article(words), "many": plural(words)}
    return Asked("existence", slots, "yes" if wanted else "no", {"unseen": unseen})


def shape(rng: random.Random, view: View) -> Asked | None:
    """What shape has the thing of this color?"""
    thing = view.some_thing(rng)
    ref = view.refer_without_name(rng, thing) if thing and view.drawn else None
    if thing is None or ref is None:
        return None
    return Asked("shape", {"a": ref}, thing.name, {"unseen": is_unseen(thing)})


def colour(rng: random.Random, view: View) -> Asked | None:
    """What color has the thing of this shape?"""
    thing = view.some_thing(rng)
    if thing is None or thing.color is None:
        return None
    ref = view.refer_without_color(thing)
    return Asked("colour", {"a": ref}, thing.color, {"unseen": is_unseen(thing)}) if ref else None


def count(rng: random.Random, view: View) -> Asked | None:
    """How many are there: all, of a color, of a shape, or of both."""
    luck, none = rng.random(), rng.random() < 0.12
    thing = view.some_thing(rng)
    color = thing.color if thing else None
    name = thing.name if thing else None
    if luck < 0.3 or thing is None:
        if not view.is_countable:
            return None
        words = rng.choice(("objects", "objects", "things", "shapes" if view.drawn else "objects"))
        return _count(words, list(view.things))
    if luck < 0.55 and view.drawn and view.colors:
        name = None
        color = view.absent_color(rng) if none else color
    elif luck < 0.82 or not view.drawn:
        color = None
        name = view.absent_name(rng) if none else name
    elif none:
        pair = view.absent_pair(rng)
        if pair is None:
            return None
        color, name = pair
    if (color is None and name is None) or may_be_many(name or ""):
        return None
    counted_things = [t for t in view.things if color in (None, t.color) and name in (None, t.name)]
    words = plural(noun(name)) if name else rng.choice(("objects", "objects", "things"))
    asked = _count(f"{color} {words}" if color else words, counted_things)
    asked.extra["unseen"] |= (color, name) in UNSEEN_PAIRS
    return asked


def _count(many: str, things: list[Thing]) -> Asked:
    unseen = any(is_unseen(t) for t in things)
    return Asked("count", {"many": many}, str(len(things)), {"unseen": unseen})


def relation(rng: random.Random, view: View) -> Asked | None:
    """Left or right, above or below: of two things that differ clearly along that axis."""
    pair = view.two_things(rng)
    if pair is None:
        return None
    a, b = pair
    ways = [side for side in (side_of(a, b, 0), side_of(a, b, 1)) if side]
    first, second = view.refer(rng, a), view.refer(rng, b)
    if not ways or first is None or second is None:
        return None
    side = rng.choice(ways)
    slots = {"a": first, "b": second}
    extra = {"unseen": is_unseen(a) or is_unseen(b)}
    if rng.random() < 0.6:
        return Asked("side" if side in ("left", "right") else "height", slots, side, extra)
    true = rng.random() < 0.5
    slots["side"] = rng.choice(SIDES[side if true else OPPOSITES[side]])
    return Asked("related", slots, "yes" if true else "no", extra)


def side_of(a: Thing, b: Thing, axis: int) -> str | None:
    """Where `a` is from `b` along an axis (0 across, 1 down); None if it is not clear."""
    offset = a.center[axis] - b.center[axis]
    if abs(offset) <= MIN_OFFSET:
        return None
    return (("left", "right"), ("above", "below"))[axis][offset > 0]


def bigger(rng: random.Random, view: View) -> Asked | None:
    """Which of two is bigger or smaller: only of things whose sizes differ clearly."""
    pair = view.two_things(rng)
    if pair is None:
        return None
    a, b = pair
    if (a.size and a.size == b.size) or not clearly_differ(a, b):
        return None
    first, second = view.refer(rng, a, size=False), view.refer(rng, b, size=False)
    if first is None or second is None:
        return None
    slots, luck = {"a": first, "b": second}, rng.random()
    extra = {"unseen": is_unseen(a) or is_unseen(b)}
    a_bigger = a.area > b.area
    if luck < 0.2:
        return Asked("bigger_or_smaller", slots, "bigger" if a_bigger else "smaller", extra)
    more = rng.choice(("bigger", "larger", "smaller"))
    slots["more"] = more
    a_wins = a_bigger != (more == "smaller")
    if luck < 0.6:
        return Asked("bigger_of", slots, first if a_wins else second, extra)
    return Asked("bigger_than", slots, "yes" if a_wins else "no", extra)


def clearly_differ(a: Thing, b: Thing) -> bool:
    """Whether one covers much more of the picture than the other."""
    return max(a.area, b.area) > MIN_AREA_RATIO * min(a.area, b.area)


def where(rng: random.Random, view: View) -> Asked | None:
    """In which of nine regions is the thing? Only of things well inside one."""
    thing = view.some_thing(rng)
    if thing is None:
        return None
    place, ref = region(thing, REGION_MARGIN), view.refer(rng, thing)
    if place is None or ref is None:
        return None
    return Asked("where", {"a": ref}, place, {"unseen": is_unseen(thing)})


def box(rng: random.Random, view: View) -> Asked | None:
    """The bounds of a thing as [x1, y1, x2, y2]."""
    thing = view.some_thing(rng)
    ref = view.refer(rng, thing) if thing else None
    if thing is None or ref is None:
        return None
    extra = {"unseen": is_unseen(thing), "box": list(thing.box)}
    return Asked("box", {"a": ref}, format_box(thing.box), extra)


def caption(rng: random.Random, view: View) -> Asked | None:
    """Everything that is there, in reading order; equal things are told together."""
    if not view.things:
        return None
    del rng  # the same picture has one caption
    numbers: dict[tuple[str | None, str], int] = {}
    first: dict[tuple[str | None, str], Thing] = {}
    for thing in reading_order(view.things):
        key = (thing.color, thing.name)
        numbers[key] = numbers.get(key, 0) + 1
        first.setdefault(key, thing)
    told = join([counted(numbers[key], phrase(first[key])) for key in numbers])
    names = sorted({*view.vocabulary(), *view.names})
    return Asked(
        "caption",
        {},
        f"{told[0].upper()}{told[1:]}.",
        {
            "unseen": bool(view.unseen),
            "things": [[t.color, t.name] for t in view.things],
            "names": {plural(noun(n)): n for n in names} | {n: n for n in names},
            "colors": list(COLORS) if view.colors else [],
        },
    )


MEASURED = {
    "existence": existence, "shape": shape, "colour": colour, "count": count,
    "relation": relation, "bigger": bigger, "where": where, "box": box, "caption": caption,
}  # fmt: skip
"""The kinds that the drawn suite measures."""
