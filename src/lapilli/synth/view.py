"""One picture as the rules look at it: what is there how often, and how to refer to it."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from lapilli.synth.names import CATEGORIES, GROUPS, group_of, may_be_many
from lapilli.synth.symbols import COLORS, SHAPES, UNSEEN_PAIRS, Symbols, Thing
from lapilli.synth.words import noun

Pair = tuple[str | None, str]
"""Color and name; either half may be missing where a phrase leaves it out."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A question before it is put into words: a form, its slots, and the truth.

    Attributes:
        form: a key of `wordings.FORMS`.
        slots: what stands in the form's slots.
        answer: the one right answer.
        extra: what a scorer needs.
    """

    form: str
    slots: dict[str, str]
    answer: str
    extra: dict[str, Any] = field(default_factory=dict)


class View:
    """Symbols with their counts, made once for all questions about a picture.

    Attributes:
        countable: how often each name comes whose thing is certainly one.
        is_countable: whether all names are.
    """

    def __init__(self, symbols: Symbols, held_out: bool) -> None:
        self.symbols = symbols
        self.things = symbols.things
        self.held_out = held_out
        self.unseen = [t for t in self.things if is_unseen(t)]
        self.may_name_unseen = held_out or bool(self.unseen)
        self.pairs = Counter((t.color, t.name) for t in self.things)
        self.names = Counter(t.name for t in self.things)
        self.colors = Counter(t.color for t in self.things if t.color is not None)
        self.sized = Counter((t.size, t.color, t.name) for t in self.things)
        self.size_colors = Counter((t.size, t.color) for t in self.things)
        self.size_names = Counter((t.size, t.name) for t in self.things)
        self.drawn = symbols.kind == "scene"
        self.countable = Counter({n: k for n, k in self.names.items() if not may_be_many(n)})
        self.is_countable = self.countable == self.names

    def nameable(self, color: str | None, name: str) -> bool:
        """Whether a pair that is not in the picture may be named."""
        return self.may_name_unseen or (color, name) not in UNSEEN_PAIRS

    def refer(self, rng: random.Random, thing: Thing, *, size: bool = True) -> str | None:
        """A short phrase with "the" that means this thing alone; None if there is none.

        Args:
            rng: chooses among phrases of about the same length.
            thing: one of the picture's things.
            size: whether the phrase may tell the size.
        """
        what, luck = noun(thing.name), rng.random()
        only_name = self.names[thing.name] == 1
        if thing.color is None:
            return f"the {what}" if only_name else None
        if only_name and luck < 0.15:
            return f"the {what}"
        if self.pairs[thing.color, thing.name] == 1:
            if size and luck > 0.95 and not self.held_out:
                return f"the {what} that is {thing.color}"
            return f"the {thing.color} {what}"
        if size and thing.size and self.sized[thing.size, thing.color, thing.name] == 1:
            return f"the {thing.size} {thing.color} {what}"
        return None

    def refer_without_name(self, rng: random.Random, thing: Thing) -> str | None:
        """A phrase that does not tell what the thing is: "the red object"."""
        if thing.color is None or not self.drawn:
            return None
        what = rng.choice(("object", "object", "thing"))
        if self.colors[thing.color] == 1:
            return f"the {thing.color} {what}"
        if thing.size and self.size_colors[thing.size, thing.color] == 1:
            return f"the {thing.size} {thing.color} {what}"
        return None

    def refer_without_color(self, thing: Thing) -> str | None:
        """A phrase that does not tell the color: "the star", "the small star"."""
        if self.names[thing.name] == 1:
            return f"the {noun(thing.name)}"
        if thing.size and self.size_names[thing.size, thing.name] == 1:
            return f"the {thing.size} {noun(thing.name)}"
        return None

    def some_thing(self, rng: random.Random) -> Thing | None:
        """A random thing, or None in an empty picture."""
        return rng.choice(self.things) if self.things else None

    def two_things(self, rng: random.Random) -> tuple[Thing, Thing] | None:
        """Two different things, in random order."""
        if len(self.things) < 2:
            return None
        first, second = rng.sample(self.things, 2)
        return first, second

    def absent_name(self, rng: random.Random) -> str | None:
        """The name of a kind of thing that the picture does not show."""
        choice = [n for n in self.vocabulary() if n not in self.names]
        return rng.choice(choice) if choice else None

    def absent_color(self, rng: random.Random) -> str | None:
        """A color that nothing in the picture has."""
        choice = [c for c in COLORS if c not in self.colors]
        return rng.choice(choice) if choice else None

    def absent_pair(self, rng: random.Random) -> tuple[str, str] | None:
        """A color and a shape that do not occur together here; mostly both occur apart."""
        if not self.colors or not self.drawn:
            return None
        if self.held_out and rng.random() < len(self.unseen) / len(self.things):
            rare = [p for p in sorted(UNSEEN_PAIRS) if p not in self.pairs]
            near = [p for p in rare if p[0] in self.colors or p[1] in self.names]
            if rare:
                return rng.choice(near or rare)
        colors, names = list(self.colors), list(self.names)
        luck = rng.random()
        if luck < 0.6 and len(self.pairs) > 1:
            both = [(c, n) for c in colors for n in names if self._missing(c, n)]
            if both:
                return rng.choice(both)
        for _ in range(20):
            color = rng.choice(colors if luck < 0.8 else COLORS)
            name = rng.choice(names if luck >= 0.7 and luck < 0.95 else SHAPES)
            if self._missing(color, name):
                return color, name
        return None

    def _missing(self, color: str, name: str) -> bool:
        return (color, name) not in self.pairs and self.nameable(color, name)

    def vocabulary(self) -> tuple[str, ...]:
        """Names that a picture of this kind may show."""
        if self.drawn:
            return SHAPES
        if self.symbols.kind == "photo":
            return CATEGORIES
        # A person in a photo of a jacket may well wear pants, so clothes rule out other clothes.
        left_out = {group_of(name) for name in self.names} & {"clothing"}
        return SHAPES + tuple(n for g, names in GROUPS.items() if g not in left_out for n in names)


def is_unseen(thing: Thing) -> bool:
    """Whether the thing's color and shape are kept for measuring."""
    return (thing.color, thing.name) in UNSEEN_PAIRS
