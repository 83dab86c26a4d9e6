"""How questions are put: wordings for training, and others kept for measuring.

The wordings stand in `wordings.toml` beside this file. To add one, put it into its form there; the
tests hold that measured wordings never occur in training and use only words that do.
"""

from __future__ import annotations

import random
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

ENDING_SHARE = 0.2
LOWER_SHARE = 0.08
UNMARKED_SHARE = 0.08
LOWER_START_SHARE = 0.04


@dataclass(frozen=True, slots=True)
class Form:
    """One way of asking, with its alternatives spread out.

    Attributes:
        train: wordings with slots in braces.
        held_out: wordings for measuring alone.
        endings: sentences on how to answer, which may follow a training wording.
    """

    train: tuple[str, ...]
    held_out: tuple[str, ...]
    endings: tuple[str, ...]


def spread(wording: str) -> list[str]:
    """Every choice of the alternatives in `wording`, without doubled spaces."""
    before, opened, rest = wording.partition("(")
    if not opened:
        return [" ".join(wording.split()).replace(" ?", "?").replace(" .", ".")]
    options, _, after = rest.partition(")")
    return [whole for option in options.split("|") for whole in spread(before + option + after)]


def word(rng: random.Random, form: str, slots: Mapping[str, str], *, held_out: bool = False) -> str:
    """A question of `form` with its slots filled, in a random wording.

    Training wordings are followed by an instruction now and then, and are sometimes as careless
    as people are: lower case, no question mark.
    """
    chosen = FORMS[form]
    text = rng.choice(chosen.held_out if held_out else chosen.train).format_map(slots)
    text = text[0].upper() + text[1:]
    if held_out:
        return text
    if chosen.endings and rng.random() < ENDING_SHARE:
        return text + rng.choice((" ", "\n")) + rng.choice(chosen.endings)
    careless = rng.random()
    if careless < LOWER_SHARE:
        return text.lower()
    careless -= LOWER_SHARE
    if careless < UNMARKED_SHARE:
        return text[:-1] if text[-1] in "?." else text
    return text[0].lower() + text[1:] if careless < UNMARKED_SHARE + LOWER_START_SHARE else text


def _read() -> dict[str, Form]:
    text = resources.files(__package__).joinpath("wordings.toml").read_text(encoding="utf-8")
    book = tomllib.loads(text)

    def lines(block: str) -> tuple[str, ...]:
        return tuple(whole for line in block.splitlines() if line for whole in spread(line))

    return {
        name: Form(
            train=lines(form["train"]),
            held_out=lines(form["held_out"]),
            endings=tuple(e for key in form.get("endings", ()) for e in book["endings"][key]),
        )
        for name, form in book["form"].items()
    }


FORMS = _read()
