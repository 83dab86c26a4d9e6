"""Conversations about a scene whose later turns refer back to the first."""

from __future__ import annotations

import random

from lapilli.synth.further_rules import beside
from lapilli.synth.names import may_be_many
from lapilli.synth.scene_rules import REGION_MARGIN, SIDES
from lapilli.synth.symbols import SIZES, Thing
from lapilli.synth.view import Asked, View
from lapilli.synth.words import (
    article,
    format_box,
    join,
    noun,
    phrase,
    plural,
    reading_order,
    region,
)


def follow_up(rng: random.Random, view: View) -> list[Asked] | None:
    """Two or three turns; the later ones refer back to the first."""
    chain = rng.choice((_about_one, _about_one, _and_another, _and_numbers))
    turns = chain(rng, view)
    return turns if turns and len(turns) > 1 else None


def _about_one(rng: random.Random, view: View) -> list[Asked] | None:
    thing = view.some_thing(rng)
    if thing is None:
        return None
    opening = _opening(rng, view, thing)
    if opening is None:
        return None
    first, told = opening
    turns = [first]
    place, other = region(thing, REGION_MARGIN), beside(rng, view, thing)
    later = [Asked("its_box", {}, format_box(thing.box), {"box": list(thing.box)})]
    if other:
        words = article(phrase(other[1]))
        later.append(Asked("its_side", {"side": rng.choice(SIDES[other[0]])}, words))
    if place:
        later.append(Asked("its_place", {}, place))
    if thing.size and "size" not in told:
        later.append(Asked("its_size", {}, thing.size))
    if thing.color and "color" not in told:
        later.append(Asked("its_color", {}, thing.color))
    rng.shuffle(later)
    turns.append(later[0])
    # After a second thing came up, "it" would no longer be clear.
    if len(later) > 1 and later[0].form != "its_side" and rng.random() < 0.5:
        turns.append(later[1])
    return turns


def _opening(rng: random.Random, view: View, thing: Thing) -> tuple[Asked, set[str]] | None:
    """A first question after which it is clear what "it" is, and the attributes then known."""
    luck = rng.random()
    if luck < 0.3 and (ref := view.refer_without_name(rng, thing)):
        return Asked("shape", {"a": ref}, thing.name), {"color", *_size_in(ref)}
    if luck < 0.6 and thing.color and (ref := view.refer_without_color(thing)):
        return Asked("colour", {"a": ref}, thing.color), {"color", *_size_in(ref)}
    if luck < 0.8 and view.names[thing.name] == 1:
        words, told = noun(thing.name), set()
    elif view.pairs[thing.color, thing.name] == 1:
        words, told = phrase(thing), {"color"}
    else:
        return None
    slots = {"an": article(words), "many": plural(words)}
    return Asked("existence", slots, "yes"), told


def _size_in(ref: str) -> set[str]:
    return {"size"} if any(f"{size} " in ref for size in SIZES) else set()


def _and_another(rng: random.Random, view: View) -> list[Asked] | None:
    """The same question about a second and a third thing."""
    if len(view.things) < 2:
        return None
    way = rng.choice(("colour", "shape", "where") if view.drawn else ("where",))
    turns: list[Asked] = []
    for thing in rng.sample(view.things, min(3, len(view.things))):
        if way == "colour":
            ref, answer = view.refer_without_color(thing), thing.color
        elif way == "shape":
            ref, answer = view.refer_without_name(rng, thing), thing.name
        else:
            ref, answer = view.refer(rng, thing), region(thing, REGION_MARGIN)
        if ref and answer:
            turns.append(Asked("and_this" if turns else way, {"a": ref}, answer))
    return turns


def _and_numbers(rng: random.Random, view: View) -> list[Asked] | None:
    if not view.countable:
        return None
    name = rng.choice(list(view.countable))
    same = [t for t in reading_order(view.things) if t.name == name]
    turns = [Asked("count", {"many": plural(noun(name))}, str(len(same)))]
    if len(same) > 1 and all(t.color for t in same) and rng.random() < 0.7:
        colors = list(dict.fromkeys(str(t.color) for t in same))
        turns.append(Asked("their_colors", {}, join(colors)))
    absent = view.absent_name(rng)
    others = [n for n in view.countable if n != name]
    if absent and not may_be_many(absent):
        others.append(absent)
    if others and (len(turns) == 1 or rng.random() < 0.4):
        other = rng.choice(others)
        turns.append(Asked("and_many", {"many": plural(noun(other))}, str(view.names[other])))
    return turns
