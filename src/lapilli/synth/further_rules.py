"""Further kinds of question about scenes: long descriptions, reasoning, what is missing."""

from __future__ import annotations

import random

from lapilli.synth.names import may_be_many
from lapilli.synth.scene_rules import (
    REGION_MARGIN,
    SIDES,
    clearly_differ,
    side_of,
)
from lapilli.synth.symbols import COLORS, SHAPES, Thing
from lapilli.synth.view import Asked, View, is_unseen
from lapilli.synth.words import (
    PLACES,
    article,
    counted,
    format_box,
    noun,
    phrase,
    plural,
    reading_order,
    region,
)

CLEAR_REGIONS = ("top left", "top right", "center", "bottom left", "bottom right")
"""Regions that mean the same to everyone ("left" may mean the whole left half)."""
MAX_OVERLAP = 0.2
"""Things that share more than this of the smaller box are not asked about by their boxes."""
NOT_SURE = ("I am not sure.", "I can't tell from the picture.")


def detail(rng: random.Random, view: View) -> Asked | None:
    """Every thing in reading order with its size, color and place."""
    if not view.things:
        return None
    del rng  # the same picture has one description
    number = len(view.things)
    verb = "is" if number == 1 else "are"
    told = [f"There {verb} {counted(number, 'object')} in the picture."]
    for thing in reading_order(view.things):
        words = article(phrase(thing, size=True))
        told.append(f"{words[0].upper()}{words[1:]} is {PLACES[region(thing) or 'center']}.")
    if view.symbols.background:
        told.append(f"The background is {view.symbols.background}.")
    return Asked("detail", {}, " ".join(told), {"unseen": bool(view.unseen)})


def reasoning(rng: random.Random, view: View) -> Asked | None:
    """Compare numbers, attributes and bounds."""
    return rng.choice((_more, _which_more, _at_least, _kinds, _same))(rng, view)


def _two_groups(rng: random.Random, view: View) -> tuple[tuple[str, int], tuple[str, int]] | None:
    if view.drawn and rng.random() < 0.5:
        choice = {f"{c} objects": view.colors[c] for c in rng.sample(COLORS, 3)}
        choice |= {f"{c} objects": n for c, n in view.colors.items()}
    else:
        absent = view.absent_name(rng)
        choice = {plural(noun(name)): n for name, n in view.countable.items()}
        if absent and not may_be_many(absent):
            choice[plural(noun(absent))] = 0
    if len(choice) < 2:
        return None
    first, second = rng.sample(sorted(choice.items()), 2)
    return first, second


def _more(rng: random.Random, view: View) -> Asked | None:
    groups = _two_groups(rng, view)
    if groups is None or groups[0][1] == groups[1][1] == 0:
        return None
    (many, n), (few, m) = groups
    if n == m and rng.random() < 0.7:
        return None
    return Asked("more_than", {"many": many, "few": few}, "yes" if n > m else "no")


def _which_more(rng: random.Random, view: View) -> Asked | None:
    groups = _two_groups(rng, view)
    if groups is None or groups[0][1] == groups[1][1]:
        return None
    (many, n), (few, m) = groups
    return Asked("which_more", {"many": many, "few": few}, many if n > m else few)


def _at_least(rng: random.Random, view: View) -> Asked | None:
    total = len(view.things)
    bound = rng.choice(("at least", "more than", "exactly"))
    number = total + rng.choice((-1, 0, 0, 1))
    if number < 2 or not view.is_countable:
        return None
    true = {"at least": total >= number, "more than": total > number, "exactly": total == number}
    slots = {"bound": bound, "number": str(number)}
    return Asked("at_least", slots, "yes" if true[bound] else "no")


def _kinds(rng: random.Random, view: View) -> Asked | None:
    if not view.drawn:
        return None
    what, counts = rng.choice((("shape", len(view.names)), ("color", len(view.colors))))
    return Asked("kinds", {"what": what}, str(counts))


def _same(rng: random.Random, view: View) -> Asked | None:
    pair = view.two_things(rng)
    if pair is None or not view.drawn:
        return None
    a, b = pair
    if rng.random() < 0.5:
        what, refs = "color", (view.refer_without_color(a), view.refer_without_color(b))
        same = a.color == b.color
    else:
        what = "shape"
        refs = (view.refer_without_name(rng, a), view.refer_without_name(rng, b))
        same = a.name == b.name
    if None in refs or (not same and rng.random() < 0.6):
        return None
    slots = {"a": str(refs[0]), "b": str(refs[1]), "what": what}
    return Asked("same", slots, "yes" if same else "no")


def identify(rng: random.Random, view: View) -> Asked | None:
    """What is at a place, beside another thing, or the first by some measure?"""
    return rng.choice((_next_to, _at_box, _in_region, _largest, _background))(rng, view)


def beside(rng: random.Random, view: View, thing: Thing) -> tuple[str, Thing] | None:
    """A side of `thing` with exactly one other thing on it, and that thing."""
    found = []
    for side, axis, sign in (("left", 0, -1), ("right", 0, 1), ("above", 1, -1), ("below", 1, 1)):
        others = [
            other
            for other in view.things
            if other is not thing and sign * (other.center[axis] - thing.center[axis]) > -0.03
        ]
        if len(others) == 1 and side_of(others[0], thing, axis) == side:
            found.append((side, others[0]))
    return rng.choice(found) if found else None


def _next_to(rng: random.Random, view: View) -> Asked | None:
    thing = view.some_thing(rng)
    ref = view.refer(rng, thing) if thing else None
    other = beside(rng, view, thing) if thing and ref else None
    if ref is None or other is None:
        return None
    slots = {"a": ref, "side": rng.choice(SIDES[other[0]])}
    return Asked("next_to", slots, article(phrase(other[1])), {"unseen": is_unseen(other[1])})


def _at_box(rng: random.Random, view: View) -> Asked | None:
    thing = view.some_thing(rng)
    if thing is None or _crowded(view, thing):
        return None
    return _name_it("at_box", {"box": format_box(thing.box)}, thing)


def _crowded(view: View, thing: Thing) -> bool:
    return any(t is not thing and overlap(t, thing) > MAX_OVERLAP for t in view.things)


def overlap(a: Thing, b: Thing) -> float:
    """How much of the smaller box the other covers, 0-1."""
    width = min(a.box[2], b.box[2]) - max(a.box[0], b.box[0])
    height = min(a.box[3], b.box[3]) - max(a.box[1], b.box[1])
    shared = max(0.0, width) * max(0.0, height)
    return shared / min(a.area, b.area)


def _in_region(rng: random.Random, view: View) -> Asked | None:
    place = rng.choice(CLEAR_REGIONS)
    inside = [t for t in view.things if region(t, REGION_MARGIN) == place]
    if len(inside) != 1 or any(_touches(t, place) for t in view.things if t is not inside[0]):
        return None
    return _name_it("in_region", {"place": PLACES[place]}, inside[0])


def _touches(thing: Thing, place: str) -> bool:
    """Whether the center is in or near a region."""
    x, y = thing.center
    row, column = divmod(tuple(PLACES).index(place), 3)
    near = 2 * REGION_MARGIN
    return (
        column / 3 - near < x < (column + 1) / 3 + near
        and row / 3 - near < y < (row + 1) / 3 + near
    )


def _largest(rng: random.Random, view: View) -> Asked | None:
    if len(view.things) < 2:
        return None
    ordered = sorted(view.things, key=lambda t: t.area)
    if rng.random() < 0.5:
        most, thing, other = rng.choice(("largest", "biggest")), ordered[-1], ordered[-2]
    else:
        most, thing, other = "smallest", ordered[0], ordered[1]
    if not clearly_differ(thing, other):
        return None
    return _name_it("extreme", {"most": most}, thing)


def _name_it(form: str, slots: dict[str, str], thing: Thing) -> Asked:
    return Asked(form, slots, article(phrase(thing)), {"unseen": is_unseen(thing)})


def _background(rng: random.Random, view: View) -> Asked | None:
    del rng
    color = view.symbols.background
    return Asked("background", {}, color) if color in COLORS else None


def check(rng: random.Random, view: View) -> Asked | None:
    """Yes or no: is this thing of that color, shape, size or place?"""
    thing = view.some_thing(rng)
    if thing is None:
        return None
    wanted, luck = rng.random() < 0.5, rng.random()
    answer, extra = "yes" if wanted else "no", {"unseen": is_unseen(thing)}
    ref: str | None
    if luck < 0.3 and thing.color:
        ref = view.refer_without_color(thing)
        other = rng.choice([c for c in COLORS if c != thing.color and view.nameable(c, thing.name)])
        what = thing.color if wanted else other
    elif luck < 0.5 and view.drawn:
        ref = view.refer_without_name(rng, thing)
        name = rng.choice([n for n in SHAPES if n != thing.name and view.nameable(thing.color, n)])
        what = article(thing.name if wanted else name)
    elif luck < 0.6 and thing.size:
        ref = view.refer(rng, thing, size=False)
        what = thing.size if wanted else ("large" if thing.size == "small" else "small")
    elif luck < 0.85:
        ref = view.refer(rng, thing)
        place = rng.choice(CLEAR_REGIONS)
        if wanted:
            if region(thing, REGION_MARGIN) not in CLEAR_REGIONS:
                return None
            place = region(thing) or place
        elif _touches(thing, place):
            return None
        what = PLACES[place]
    else:
        return _check_box(rng, view, thing, wanted)
    return Asked("check", {"a": ref, "what": what}, answer, extra) if ref else None


def _check_box(rng: random.Random, view: View, thing: Thing, wanted: bool) -> Asked | None:
    named = thing
    if not wanted:
        others = [t for t in view.things if (t.color, t.name) != (thing.color, thing.name)]
        if not others:
            return None
        named = rng.choice(others)
    if _crowded(view, thing):
        return None
    slots = {"an": article(phrase(named)), "box": format_box(thing.box)}
    return Asked("check_box", slots, "yes" if wanted else "no", {"unseen": is_unseen(named)})


def absent(rng: random.Random, view: View) -> Asked | None:
    """Questions about something that is not there; the answer says so."""
    form = rng.choice(
        ("colour", "where", "box", "shape", "side") if view.drawn else ("where", "box")
    )
    words: str | None
    if form == "colour":
        words = view.absent_name(rng)
    elif form == "shape":
        color = view.absent_color(rng)
        words = f"{color} object" if color else None
    else:
        pair = view.absent_pair(rng) if view.drawn else None
        name = view.absent_name(rng)
        words = f"{pair[0]} {pair[1]}" if pair else noun(name) if name else None
    if words is None:
        return None
    slots = {"a": f"the {words}"}
    if form == "side":
        other = view.some_thing(rng)
        ref = view.refer(rng, other) if other else None
        if ref is None:
            return None
        slots = {"a": ref, "b": f"the {words}"}
        if rng.random() < 0.5:
            slots = {"a": slots["b"], "b": ref}
    return Asked(form, slots, f"There is no {words} in the picture.")


def unsure(rng: random.Random, view: View) -> Asked | None:
    """Questions that the picture does not answer."""
    thing = view.some_thing(rng)
    ref = view.refer(rng, thing) if thing else None
    if ref is None:
        return None
    return Asked("unsure_scene", {"a": ref}, rng.choice(NOT_SURE), {"answers": list(NOT_SURE)})
