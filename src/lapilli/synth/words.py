"""Phrases for things and places, and a whole scene told in words."""

from __future__ import annotations

import random
from collections.abc import Sequence

from lapilli.synth.symbols import Box, Symbols, Thing

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
UNITS = {
    "pants": "pair", "shorts": "pair", "shoes": "pair", "scissors": "pair", "skis": "pair",
    "broccoli": "piece", "milk": "pack", "juice": "pack", "yoghurt": "pack", "soy milk": "pack",
    "soyghurt": "pack", "oatghurt": "pack", "oat milk": "pack", "sour milk": "pack",
    "sour cream": "pack", "garlic": "bulb", "ginger": "piece", "asparagus": "bunch",
}  # fmt: skip
"""Nouns that cannot follow "a" or a number, and the unit that lets them."""

PLACES = {
    "top left": "in the top left", "top": "at the top", "top right": "in the top right",
    "left": "on the left", "center": "in the center", "right": "on the right",
    "bottom left": "in the bottom left", "bottom": "at the bottom",
    "bottom right": "in the bottom right",
}  # fmt: skip
"""The nine regions, by their answers, as they stand in a sentence."""
REGIONS = tuple(PLACES)


def noun(name: str) -> str:
    """A countable noun phrase: "star", "pair of pants"."""
    unit = UNITS.get(name)
    return f"{unit} of {name}" if unit else name


def plural(phrase: str) -> str:
    """The plural of a singular noun phrase, whose head stands last or before " of "."""
    head, of, rest = phrase.partition(" of ")
    if head.endswith(("s", "x", "ch", "sh")) or head.endswith(("potato", "tomato", "mango")):
        head += "es"
    elif head.endswith("y") and head[-2] not in "aeiou":
        head = head[:-1] + "ies"
    else:
        head += "s"
    return head + of + rest


def article(phrase: str) -> str:
    """The phrase after "a" or "an"."""
    return ("an " if phrase[0] in "aeiouAEIOU" else "a ") + phrase


def counted(number: int, phrase: str) -> str:
    """ "a star", "two stars"; figures above ten."""
    if number == 1:
        return article(phrase)
    word = NUMBERS[number] if number < len(NUMBERS) else str(number)
    return f"{word} {plural(phrase)}"


def join(parts: Sequence[str]) -> str:
    """Parts as an English list: "x", "x and y", "x, y and z"."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def phrase(thing: Thing, *, size: bool = False) -> str:
    """What a thing is, without an article: "red star", with its size "small red star"."""
    words = noun(thing.name)
    if thing.color is not None:
        words = f"{thing.color} {words}"
    return f"{thing.size} {words}" if size and thing.size is not None else words


def format_box(box: Box) -> str:
    """The box as answers write it, two decimals."""
    return "[{:.2f}, {:.2f}, {:.2f}, {:.2f}]".format(*box)


def region(thing: Thing, margin: float = 0.0) -> str | None:
    """The one of nine regions that holds the center; None within `margin` of a border."""
    column, row = (_third(value, margin) for value in thing.center)
    return None if column is None or row is None else REGIONS[3 * row + column]


def _third(value: float, margin: float) -> int | None:
    if min(abs(value - 1 / 3), abs(value - 2 / 3)) < margin:
        return None
    return min(2, max(0, int(value * 3)))


def reading_order(things: Sequence[Thing]) -> list[Thing]:
    """Things by thirds from top to bottom, within each from left to right."""
    return sorted(things, key=lambda t: (_third(t.center[1], 0.0), t.center[0], t.center[1]))


def describe_in_words(rng: random.Random, symbols: Symbols) -> str:
    """Tell everything known of a picture in words, so that any question can be answered from it.

    Things come in random order and in one of many layouts. Boxes are always told as numbers,
    which is complete; regions are told besides in about half of the descriptions.
    """
    if symbols.kind in ("photo", "flag") and len(symbols.things) == 1:
        return _subject(rng, symbols)
    things = list(symbols.things)
    rng.shuffle(things)
    if not things:
        return rng.choice(("There is nothing in the picture.", "The picture is empty."))
    layout = rng.choice(_LAYOUTS)
    with_place = rng.random() < 0.5
    mixed = layout is _sentence and rng.random() < 0.5
    told = [
        (_clause if mixed and rng.random() < 0.5 else layout)(rng, t, with_place) for t in things
    ]
    start = rng.choice(("", "", "Picture: ", "In the picture: ", "The picture shows this.\n"))
    between = " " if layout in (_sentence, _clause) else rng.choice(("\n", "; ", "\n- "))
    text = start + ("- " if "-" in between else "") + between.join(told)
    if symbols.background and rng.random() < 0.7:
        text += rng.choice(("\nThe background is {}.", "\nbackground: {}")).format(
            symbols.background
        )
    return text


def _where(rng: random.Random, thing: Thing, with_place: bool) -> str:
    box = format_box(thing.box)
    if not with_place:
        return f"at {box}"
    place = PLACES[region(thing) or "center"]
    return rng.choice((f"{place} at {box}", f"{place}, {box}", f"at {box}, {place}"))


def _sentence(rng: random.Random, thing: Thing, with_place: bool) -> str:
    what, where = phrase(thing, size=True), _where(rng, thing, with_place)
    form = rng.choice(
        ("There is {} {}.", "{} is {}.", "You can see {} {}.", "The picture has {} {}.")
    )
    text = form.format(article(what), where)
    return text[0].upper() + text[1:]


def _clause(rng: random.Random, thing: Thing, with_place: bool) -> str:
    where = _where(rng, thing, with_place)
    marks = [mark for mark in (thing.color, thing.size) if mark is not None]
    if not marks:
        return f"{article(noun(thing.name)).capitalize()} stands {where}."
    rng.shuffle(marks)
    name = article(noun(thing.name))
    if rng.random() < 0.5:
        return f"There is {name} that is {join(marks)} {where}."
    return f"{where[0].upper()}{where[1:]} there is {name}. It is {join(marks)}."


def _item(rng: random.Random, thing: Thing, with_place: bool) -> str:
    what, box = phrase(thing, size=True), format_box(thing.box)
    place = f" ({region(thing)})" if with_place else ""
    return rng.choice((f"{what}{place}: {box}", f"{what} {box}{place}", f"{box}: {what}{place}"))


def _fields(rng: random.Random, thing: Thing, with_place: bool) -> str:
    fields = [f"shape: {thing.name}" if thing.color else f"object: {thing.name}"]
    if thing.color is not None:
        fields.append(f"color: {thing.color}")
    if thing.size is not None:
        fields.append(f"size: {thing.size}")
    fields.append(f"box: {format_box(thing.box)}")
    if with_place:
        fields.append(f"place: {region(thing)}")
    rng.shuffle(fields)
    return ", ".join(fields)


_LAYOUTS = (_sentence, _sentence, _clause, _item, _fields)


def _subject(rng: random.Random, symbols: Symbols) -> str:
    name, fine = symbols.things[0].name, symbols.extra.get("fine")
    if symbols.kind == "flag":
        name = fine or name
        return rng.choice(
            ("The flag of {}.", "This is the flag of {}.", "The picture shows the flag of {}.")
        ).format(name)
    text = rng.choice(("A photo of {}.", "This is a photo of {}.", "The picture shows {}.")).format(
        article(noun(name))
    )
    return f"{text} It is of the kind {fine}." if fine else text
