"""The drawn suite: scores of answers about pictures whose symbols are known, by kind."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lapilli.errors import DataError
from lapilli.eval.metrics import exact, f1, iou, normalize, parse_box
from lapilli.eval.questions import read_questions
from lapilli.eval.task import Task
from lapilli.messages import Question

MIN_IOU = 0.5
_WORD_OR_BREAK = re.compile(r"[\w'-]+|[:;]")
_BREAKS = frozenset({"and", ":", ";"})
"""After these a number or a color belongs to nothing that follows."""
_MOST_COUNTED = 20
"""A greater number in an answer counts as this."""
_CANNOT_TELL = ("not sure", "can't tell", "cannot tell", "don't know", "do not know")

Pair = tuple[str | None, str]
"""Color, where one is told, and name."""


def score(question: Question, answer: str) -> float:
    """How right an answer is, 0-1.

    Boxes need an IoU above 0.5; captions give the F1 of (color, name) pairs, counted as often as
    they are told; "unsure" accepts every way of saying so; all else is right or wrong after
    articles, case, full stops and spelling are evened out.

    Raises:
        DataError: the question lacks what its kind is scored by.
    """
    extra = question.extra
    if question.category == "box" or "box" in extra:
        truth, box = _need(question, "box"), parse_box(answer)
        return float(box is not None and iou(box, truth) > MIN_IOU)
    if "things" in extra:
        named = objects_named(answer, _need(question, "names"), _need(question, "colors"))
        return f1(((color, name) for color, name in extra["things"]), named)
    if "answers" in extra:
        return float(any(words in answer.lower() for words in _CANNOT_TELL))
    return exact(question.answer, answer)


def objects_named(text: str, names: Mapping[str, str], colors: Iterable[str]) -> list[Pair]:
    """The (color, name) pairs that a description tells, each as often as its number says.

    Args:
        text: "Two red circles and a small green square."
        names: what may be named, in singular and plural, to the name: {"stars": "star", ...}.
        colors: words that are colors.
    """
    words, known = _WORD_OR_BREAK.findall(normalize(text)), frozenset(colors)
    found: list[Pair] = []
    number, color, at = 1, None, 0
    while at < len(words):
        word, length = words[at], _length_of_name(words, at, names)
        # "Orange" is a fruit, but in "an orange star" it is a color.
        if length and not (word in known and _length_of_name(words, at + 1, names)):
            found += [(color, names[" ".join(words[at : at + length])])] * number
            number, color = 1, None
            at += length
            continue
        if word.isdigit():
            number = min(int(word), _MOST_COUNTED)
        elif word in known:
            color = word
        elif word in _BREAKS:
            number, color = 1, None
        at += 1
    return found


def _length_of_name(words: Sequence[str], at: int, names: Mapping[str, str]) -> int:
    """How many words the longest name has that begins at a word; 0 if none does."""
    longest = max((len(name.split()) for name in names), default=0)
    return next((n for n in range(longest, 0, -1) if " ".join(words[at : at + n]) in names), 0)


def _need(question: Question, key: str) -> Any:
    if key not in question.extra:
        raise DataError(f"question {question.id}: no {key!r} to score it by. Add it to its extra.")
    return question.extra[key]


DRAWN = Task("drawn", read_questions, score, max_new_tokens=96)
"""An answer of 96 tokens tells a caption of eight objects, the most that are drawn."""
