"""The kinds beyond the measured ones: every answer about one known scene is looked up by hand."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from lapilli.synth.further_rules import absent, check, detail, identify, reasoning, unsure
from lapilli.synth.symbols import Symbols, Thing
from lapilli.synth.turn_rules import follow_up
from lapilli.synth.view import Asked, View
from lapilli.synth.words import format_box

THINGS = {
    "top left": Thing("circle", (0.02, 0.02, 0.38, 0.38), "red", "large"),
    "top right": Thing("square", (0.84, 0.10, 0.98, 0.24), "blue", "small"),
    "center": Thing("triangle", (0.45, 0.45, 0.55, 0.55), "red", "small"),
    "bottom left": Thing("circle", (0.10, 0.75, 0.24, 0.89), "green", "small"),
    "bottom right": Thing("star", (0.62, 0.62, 0.88, 0.88), "yellow", "large"),
}
SCENE = Symbols(tuple(THINGS.values()), background="white")
PLACE_OF = {thing: place for place, thing in THINGS.items()}
BY_BOX = {format_box(thing.box): thing for thing in THINGS.values()}


def told(rule: Callable[[random.Random, View], Any], tries: int = 600) -> list[Any]:
    """What a rule asks of the scene, over many draws."""
    rng, view = random.Random(0), View(SCENE, held_out=False)
    found = [asked for asked in (rule(rng, view) for _ in range(tries)) if asked]
    assert len(found) > tries / 5
    return found


def meant(words: str) -> list[Thing]:
    """The things that have every attribute in a phrase."""
    said = set(words.split()) - {"the", "a", "an", "that", "is", "object", "thing"}
    return [t for t in SCENE.things if said <= {t.name, t.color, t.size}]


def only(words: str) -> Thing:
    (thing,) = meant(words)
    return thing


def name(thing: Thing) -> str:
    return f"a {thing.color} {thing.name}"


def group_size(words: str) -> int:
    """How many things "red objects" or "stars" are; the scene has no other plurals."""
    return len(meant(words.replace("crosses", "cross").rstrip("s").replace("cros", "cross")))


def test_comparisons_follow_the_numbers() -> None:
    seen = set()
    for asked in told(reasoning):
        slots, answer = asked.slots, asked.answer
        seen.add(asked.form)
        match asked.form:
            case "more_than":
                is_more = group_size(slots["many"]) > group_size(slots["few"])
                assert answer == ("yes" if is_more else "no"), slots
            case "which_more":
                other = slots["many"] if answer == slots["few"] else slots["few"]
                assert {answer, other} == {slots["many"], slots["few"]}
                assert group_size(answer) > group_size(other)
            case "at_least":
                number = int(slots["number"])
                true = {"at least": number <= 5, "more than": number < 5, "exactly": number == 5}
                assert answer == ("yes" if true[slots["bound"]] else "no"), slots
            case "kinds":
                assert answer == "4"
            case "same":
                a, b, what = only(slots["a"]), only(slots["b"]), slots["what"]
                same = a.name == b.name if what == "shape" else a.color == b.color
                assert answer == ("yes" if same else "no"), slots
    assert seen == {"more_than", "which_more", "at_least", "kinds", "same"}


def test_what_is_identified_stands_there() -> None:
    seen = set()
    for asked in told(identify):
        slots = asked.slots
        seen.add(asked.form)
        match asked.form:
            case "at_box":
                assert asked.answer == name(BY_BOX[slots["box"]])
            case "in_region":
                place = slots["place"].removeprefix("in the ")
                assert asked.answer == name(THINGS[place])
            case "extreme":
                is_small = slots["most"] == "smallest"
                assert asked.answer == ("a red triangle" if is_small else "a red circle")
            case "next_to":  # on every other side of a thing stand none or several
                assert only(slots["a"]).name == "star"
                assert slots["side"] in ("right of", "to the right of")
                assert asked.answer == "a blue square"
            case "background":
                assert asked.answer == "white"
    assert seen == {"at_box", "in_region", "extreme", "next_to", "background"}


def test_a_check_is_confirmed_only_where_it_is_so() -> None:
    answers = []
    for asked in told(check):
        slots = asked.slots
        answers.append(asked.answer)
        if asked.form == "check_box":
            true = name(BY_BOX[slots["box"]]) == slots["an"]
        else:
            thing, what = only(slots["a"]), slots["what"]
            true = what in {thing.color, thing.size, f"a {thing.name}", f"in the {PLACE_OF[thing]}"}
        assert asked.answer == ("yes" if true else "no"), slots
    assert 0.4 < answers.count("yes") / len(answers) < 0.6


def test_what_is_absent_is_said_to_be() -> None:
    forms = set()
    for asked in told(absent):
        words = asked.answer.removeprefix("There is no ").removesuffix(" in the picture.")
        assert not meant(words), asked
        assert f"the {words}" in asked.slots.values()
        others = [slot for slot in asked.slots.values() if slot != f"the {words}"]
        assert all(only(slot) for slot in others)
        forms.add(asked.form)
    assert forms == {"colour", "where", "box", "shape", "side"}


def test_a_description_tells_everything_in_reading_order() -> None:
    asked = detail(random.Random(0), View(SCENE, held_out=False))
    assert asked is not None
    assert asked.answer == (
        "There are five objects in the picture. A large red circle is in the top left. "
        "A small blue square is in the top right. A small red triangle is in the center. "
        "A small green circle is in the bottom left. A large yellow star is in the bottom right. "
        "The background is white."
    )


def test_later_turns_are_about_what_the_first_was_about() -> None:
    seen = set()
    for first, *later in told(follow_up):
        slots = first.slots
        thing = None if first.form == "count" else only(slots.get("a") or slots["an"])
        attribute = {"colour": "color", "shape": "name"}.get(first.form)
        if attribute:
            assert first.answer == getattr(thing, attribute)
        if first.form == "count":
            assert first.answer == str(group_size(slots["many"]))
        for turn in later:
            seen.add(turn.form)
            assert turn.answer == _answer(first, turn, thing), (first, turn)
    assert seen == {
        "its_box", "its_side", "its_place", "its_size", "its_color", "and_this", "their_colors",
        "and_many",
    }  # fmt: skip


def _answer(first: Asked, turn: Asked, thing: Thing | None) -> str:
    """The right answer to a later turn, by the table of things."""
    if turn.form == "and_many":
        return str(group_size(turn.slots["many"]))
    if turn.form == "their_colors":
        return "red and green"  # those of the circles; of every other shape there is one
    if turn.form == "and_this":
        other = only(turn.slots["a"])
        place = PLACE_OF[other]
        return str({"colour": other.color, "shape": other.name, "where": place}[first.form])
    assert thing is not None
    if turn.form == "its_side":
        assert thing.name == "star" and "right" in turn.slots["side"]
        return "a blue square"
    known = {"its_box": format_box(thing.box), "its_place": PLACE_OF[thing],
             "its_color": str(thing.color), "its_size": str(thing.size)}  # fmt: skip
    return known[turn.form]


@pytest.mark.parametrize("rule", [reasoning, identify, check, absent, unsure, detail, follow_up])
def test_nothing_is_asked_that_an_empty_picture_cannot_answer(
    rule: Callable[[random.Random, View], Any],
) -> None:
    rng, view = random.Random(0), View(Symbols(()), held_out=False)
    for asked in (rule(rng, view) for _ in range(100)):
        for turn in asked if isinstance(asked, list) else [asked] if asked else []:
            assert turn.answer in ("yes", "no", "0") or turn.answer.startswith("There is no "), turn
