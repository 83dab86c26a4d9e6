"""Symbols in, questions and answers out: what training and measuring ask about a picture."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from lapilli.errors import DataError
from lapilli.messages import Question
from lapilli.synth import (
    further_rules,
    order_rules,
    scene_rules,
    subject_rules,
    turn_rules,
)
from lapilli.synth.symbols import Symbols
from lapilli.synth.view import Asked, View
from lapilli.synth.wordings import word


@dataclass(frozen=True, slots=True)
class Turn:
    """One question with its one right answer.

    Attributes:
        question: as a person would put it.
        answer: short answers in lower case without a full stop, others as sentences.
        kind: one of KINDS.
        extra: what a scorer needs: "unseen" always; "box", "things", "names", "answers" by kind.
    """

    question: str
    answer: str
    kind: str
    extra: dict[str, Any] = field(default_factory=dict)


class Drawn(Protocol):
    """A picture with its symbols."""

    @property
    def image(self) -> Any: ...

    @property
    def symbols(self) -> Symbols: ...


Rule = Callable[[random.Random, View], "Asked | list[Asked] | None"]

SCENE_RULES: dict[str, Rule] = {
    **scene_rules.MEASURED,
    "detail": further_rules.detail,
    "reasoning": further_rules.reasoning,
    "identify": further_rules.identify,
    "order": order_rules.order,
    "size": order_rules.size,
    "check": further_rules.check,
    "follow_up": turn_rules.follow_up,
    "absent": further_rules.absent,
    "unsure": further_rules.unsure,
}
SUBJECT_RULES: dict[str, Rule] = {
    "what": subject_rules.what,
    "existence": subject_rules.existence,
    "caption": subject_rules.caption,
    "follow_up": subject_rules.follow_up,
    "unsure": subject_rules.unsure,
}
PHOTOGRAPH_RULES: dict[str, Rule] = {
    **{kind: SCENE_RULES[kind] for kind in ("existence", "relation", "where", "box")},
    "caption": subject_rules.told_caption,
    "unsure": subject_rules.unsure,
}
"""For photographs of scenes, where objects of some categories are labelled but not everything."""
KINDS: tuple[str, ...] = (*SCENE_RULES, "what")
MEASURED: tuple[str, ...] = tuple(scene_rules.MEASURED)

WEIGHTS: Mapping[str, float] = {
    "existence": 1.0, "shape": 1.2, "colour": 1.2, "count": 1.8, "relation": 4.0, "bigger": 3.5,
    "where": 1.4, "box": 1.6, "caption": 0.9, "detail": 0.3, "reasoning": 0.6, "identify": 0.8,
    "order": 2.0, "size": 1.0, "check": 0.6, "follow_up": 0.7, "absent": 0.4, "unsure": 0.15,
    "what": 4.0,
}  # fmt: skip
"""How often each kind is asked; those that are learned late more often."""
TRIES = 6


def ask(
    rng: random.Random,
    symbols: Symbols,
    kinds: Sequence[str] | None = None,
    *,
    held_out: bool = False,
    weights: Mapping[str, float] | None = None,
) -> list[Turn] | None:
    """One question about a picture, or a conversation of 2-3 turns for the kind "follow_up".

    Args:
        rng: every choice comes from it.
        symbols: what the picture shows.
        kinds: kinds to choose from; None for all that fit.
        held_out: use the wordings kept for measuring, and name pairs kept for it.
        weights: how often each kind is chosen, instead of WEIGHTS.

    Returns:
        The turns; None if no such question can be asked of this picture.
    """
    made = _ask(rng, View(symbols, held_out), kinds, dict(weights or WEIGHTS))
    return made[1] if made else None


def ask_many(
    rng: random.Random, symbols: Symbols, count: int, *, held_out: bool = False
) -> list[list[Turn]]:
    """Up to `count` independent conversations about one picture; none is asked twice."""
    view, weights = View(symbols, held_out), dict(WEIGHTS)
    found: list[list[Turn]] = []
    seen: set[object] = set()
    for _ in range(2 * count):
        if len(found) == count:
            break
        made = _ask(rng, view, None, weights)
        if made is None:
            break
        key, turns = made
        weights[turns[0].kind] *= 0.6
        if key not in seen:
            seen.add(key)
            found.append(turns)
    return found


def _ask(
    rng: random.Random, view: View, kinds: Sequence[str] | None, weights: Mapping[str, float]
) -> tuple[object, list[Turn]] | None:
    """A key that is equal for equal questions, and the turns."""
    rules = _rules(view.symbols)
    left = [kind for kind in (kinds or rules) if kind in rules]
    while left:
        chances = [weights.get(kind, 1.0) for kind in left]
        kind = rng.choices(left, chances)[0] if len(left) > 1 else left[0]
        left.remove(kind)
        for _ in range(TRIES):
            asked = rules[kind](rng, view)
            if asked:
                turns = asked if isinstance(asked, list) else [asked]
                key = tuple((a.form, *a.slots.values()) for a in turns)
                return key, [_turn(rng, a, kind, view.held_out) for a in turns]
    return None


def _rules(symbols: Symbols) -> dict[str, Rule]:
    if symbols.kind not in ("photo", "flag"):
        return SCENE_RULES
    labelled = len(symbols.things) > 1 or symbols.extra.get("subject") == "photograph"
    return PHOTOGRAPH_RULES if labelled else SUBJECT_RULES


def _turn(rng: random.Random, asked: Asked, kind: str, held_out: bool) -> Turn:
    question = word(rng, asked.form, asked.slots, held_out=held_out)
    return Turn(question, asked.answer, kind, {"unseen": False, **asked.extra})


def ask_name(rng: random.Random, symbols: Symbols) -> Turn:
    """What a picture of one subject shows, or whose flag it is: the plain question alone.

    Args:
        rng: chooses the wording.
        symbols: of a photograph of one subject, or of a flag.
    """
    return _turn(rng, subject_rules.named(View(symbols, held_out=False)), "what", held_out=False)


def to_question(turn: Turn, image: Any, id: str) -> Question:
    """A turn as a question of a benchmark; its kind becomes the category."""
    return Question(id, image, turn.question, turn.answer, turn.kind, dict(turn.extra))


def suite(
    seed: int,
    per_kind: int,
    *,
    draw: Callable[[int], Drawn],
    kinds: Sequence[str] = MEASURED,
    held_out: bool = True,
    keep: Callable[[Turn], bool] = lambda turn: True,
) -> Iterator[Question]:
    """Yield `per_kind` questions of each kind; pictures are drawn as they are needed.

    Args:
        seed: of the questions; `draw` is given seed, seed + 1, ...
        per_kind: questions of each kind.
        draw: makes a picture with its symbols from a seed.
        kinds: one question of each is asked about a picture if it can be.
        held_out: use wordings and pairs kept for measuring.
        keep: whether a question counts; one that does not is passed over.

    Raises:
        DataError: the pictures do not allow enough questions of some kind.
    """
    missing = dict.fromkeys(kinds, per_kind)
    for number in range(20 * per_kind + 200):
        if not any(missing.values()):
            return
        drawn, rng = draw(seed + number), random.Random(f"questions-{seed}-{number}")
        for kind in kinds:
            turns = ask(rng, drawn.symbols, [kind], held_out=held_out) if missing[kind] else None
            if turns and keep(turns[0]):
                missing[kind] -= 1
                yield to_question(turns[0], drawn.image, f"{kind}-{per_kind - missing[kind]:05d}")
    lacking = ", ".join(kind for kind, number in missing.items() if number)
    if lacking:
        raise DataError(f"drawn suite, seed {seed}: too few pictures allow {lacking}. Draw others.")
