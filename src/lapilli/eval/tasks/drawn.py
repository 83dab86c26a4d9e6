"""The drawn suite: scores of answers about pictures whose symbols are known, by kind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lapilli.errors import DataError
from lapilli.eval.metrics import exact, f1, iou, normalize, parse_box
from lapilli.messages import Question

MIN_IOU = 0.5
_CANNOT_TELL = ("not sure", "can't tell", "cannot tell", "don't know", "do not know")

Pair = tuple[str | None, str]
"""Color, where one is told, and name."""


def drawn_questions(rows: Iterable[Mapping[str, Any]]) -> list[Question]:
    """Questions from saved turns.

    Args:
        rows: objects with "id", "image", "question", "answer", "kind" and, by kind, "extra".

    Raises:
        DataError: a row lacks one of them.
    """
    questions = []
    for number, row in enumerate(rows, start=1):
        missing = [k for k in ("id", "image", "question", "answer", "kind") if k not in row]
        if missing:
            raise DataError(f"drawn suite, row {number}: no {missing[0]!r}. Add it to the row.")
        extra = {"unseen": False, **row.get("extra", {})}
        questions.append(
            Question(row["id"], row["image"], row["question"], row["answer"], row["kind"], extra)
        )
    return questions


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
    words, known = normalize(text).split(), frozenset(colors)
    longest = max((len(name.split()) for name in names), default=1)
    found: list[Pair] = []
    number, color, at = 1, None, 0
    while at < len(words):
        taken = next((n for n in range(longest, 0, -1) if " ".join(words[at : at + n]) in names), 0)
        if taken:
            found += [(color, names[" ".join(words[at : at + taken])])] * number
            number, color = 1, None
        elif words[at].isdigit():
            number = min(int(words[at]), 20)
        elif words[at] in known:
            color = words[at]
        elif words[at] == "and":
            number, color = 1, None
        at += max(1, taken)
    return found


def _need(question: Question, key: str) -> Any:
    if key not in question.extra:
        raise DataError(f"question {question.id}: no {key!r} to score it by. Add it to its extra.")
    return question.extra[key]
