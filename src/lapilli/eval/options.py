"""Questions with lettered options: how they are written, and which letter an answer chose."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from lapilli.messages import Question

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
OPTIONS = "options"
"""Key in a question's extra: its options by their letters."""

_AT_START = re.compile(r"\(?([A-Z])(?:[.:)]|$)")
_IN_SENTENCE = re.compile(r"\b(?:answer|option|choice)(?: is)?:? \(?([A-Z])\b")


def lettered(options: Sequence[str]) -> dict[str, str]:
    """Options by their letters."""
    return dict(zip(LETTERS, options, strict=False))


def written(question: str, options: Mapping[str, str]) -> str:
    """A question with its options, one on a line."""
    return "\n".join([question, *(f"{letter}. {text}" for letter, text in options.items())])


def read_letter(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter that an answer chose; None if it chose none, or more than one.

    It may stand alone, before a mark ("B.", "(B)", "B: a cat"), or after "the answer is". Without
    a letter, the answer must be the text of an option, or hold that of one option alone.
    """
    text = answer.strip()
    found = _AT_START.match(text)
    said = {found[1]} if found else set(_IN_SENTENCE.findall(text))
    if not said & options.keys():
        said = {letter for letter, option in options.items() if _even(option) == _even(text)}
    if not said:
        said = {letter for letter, option in options.items() if _holds(text, option)}
    return said.pop() if len(said) == 1 and said <= options.keys() else None


def _even(text: str) -> str:
    return " ".join(text.lower().rstrip(". ").split())


def _holds(text: str, option: str) -> bool:
    words = re.escape(_even(option))
    return bool(words) and re.search(rf"(?<!\w){words}(?!\w)", _even(text)) is not None


def score_letter(question: Question, answer: str) -> float | None:
    """1.0 if the letter is right."""
    said = read_letter(answer, question.extra[OPTIONS])
    return None if said is None else float(said == question.answer)
