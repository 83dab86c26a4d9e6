"""Questions about photographs and flags: pictures of one labelled subject, or partly labelled."""

from __future__ import annotations

import random

from lapilli.synth.further_rules import NOT_SURE
from lapilli.synth.names import COUNTRIES, FAR, GROUPS, group_of
from lapilli.synth.symbols import Symbols
from lapilli.synth.view import Asked, View
from lapilli.synth.words import article, noun, plural


def subject(symbols: Symbols) -> str:
    """What the picture is of: a name, or a flag's country."""
    name = symbols.things[0].name
    return str(symbols.extra.get("fine", name)) if symbols.kind == "flag" else name


def what(rng: random.Random, view: View) -> Asked | None:
    """What is this: its name, its group, its finer kind, or one of two."""
    name, extra = subject(view.symbols), view.symbols.extra
    if view.symbols.kind == "flag":
        return named(view) if rng.random() < 0.8 else Asked("subject", {}, "flag")
    luck, group = rng.random(), group_of(name)
    if "fine" in extra and luck < 0.25:
        return Asked("fine", {"name": name}, str(extra["fine"]))
    if group and luck < 0.35:
        groups = list(GROUPS)
        rng.shuffle(groups)
        return Asked("group", {"groups": ", ".join(groups)}, group)
    other = near_miss(rng, view.symbols)
    if other and luck < 0.5:
        pair = [article(noun(name)), article(noun(other))]
        rng.shuffle(pair)
        return Asked("either", {"an": pair[0], "other": pair[1]}, article(noun(name)))
    return named(view)


def named(view: View) -> Asked:
    """What it is by its name, or whose flag."""
    form = "flag" if view.symbols.kind == "flag" else "subject"
    return Asked(form, {}, subject(view.symbols))


def existence(rng: random.Random, view: View) -> Asked | None:
    """Is this one? Half the answers are yes; the others are mostly of the same group."""
    wanted, flag = rng.random() < 0.5, view.symbols.kind == "flag"
    name: str | None = subject(view.symbols)
    if not wanted:
        far = not flag and rng.random() < 0.15
        name = rng.choice(FAR) if far else near_miss(rng, view.symbols)
    if name is None:
        return None
    answer = "yes" if wanted else "no"
    if flag:
        return Asked("is_flag", {"name": name}, answer)
    slots = {"an": article(noun(name)), "many": plural(noun(name))}
    # Whoever wears the jacket may wear pants too: of other clothes, ask only about the subject.
    doubtful = not wanted and group_of(name) == group_of(subject(view.symbols)) == "clothing"
    return Asked("is_subject" if doubtful or rng.random() < 0.6 else "existence", slots, answer)


def caption(rng: random.Random, view: View) -> Asked | None:
    """One sentence with the subject's name."""
    del rng  # the same picture has one caption
    name = subject(view.symbols)
    if view.symbols.kind == "flag":
        return Asked("caption", {}, f"The flag of {name}.")
    return Asked("caption", {}, f"A photo of {article(noun(name))}.")


def told_caption(rng: random.Random, view: View) -> Asked | None:
    """What a person wrote about the photograph."""
    captions = view.symbols.extra.get("captions")
    return Asked("caption", {}, rng.choice(captions)) if captions else None


def unsure(rng: random.Random, view: View) -> Asked | None:
    """Questions that the picture does not answer."""
    if view.symbols.kind == "flag":
        return None
    return Asked("unsure_photo", {}, rng.choice(NOT_SURE), {"answers": list(NOT_SURE)})


def follow_up(rng: random.Random, view: View) -> list[Asked] | None:
    """What is this, and then whether it is something else."""
    first, second = what(rng, view), existence(rng, view)
    return [first, second] if first and second else None


def near_miss(rng: random.Random, symbols: Symbols) -> str | None:
    """Another name, mostly of the same group, that the right one cannot be taken for."""
    name = subject(symbols)
    if symbols.kind == "flag":
        choice = list(COUNTRIES)
    else:
        group = group_of(name)
        everything = [n for names in GROUPS.values() for n in names]
        choice = list(GROUPS[group] if group and rng.random() < 0.8 else everything)
    choice = [n for n in choice if n not in name and name not in n]
    return rng.choice(choice) if choice else None
