"""A folder of one's own questions, scored by whichever way is named."""

from __future__ import annotations

from collections.abc import Mapping

from lapilli.eval.metrics import exact
from lapilli.eval.options import lettered, read_letter
from lapilli.eval.questions import read_questions, references
from lapilli.eval.task import Figures, Score, Task
from lapilli.eval.tasks import captions, chartqa, docvqa, drawn, mme
from lapilli.eval.vqa_accuracy import accuracy
from lapilli.messages import Question

LONGEST_ANSWER = 128


def is_exact(question: Question, answer: str) -> float:
    """1.0 if the answer is one of the references, after evening out their writing."""
    return max(exact(reference, answer) for reference in references(question))


def vqa(question: Question, answer: str) -> float:
    """How many of several people agree."""
    return accuracy(references(question), answer)


def letter(question: Question, answer: str) -> float | None:
    """1.0 for the letter of the right option; the question's key "options" is a list of them."""
    said = read_letter(answer, lettered(question.extra["options"]))
    return None if said is None else float(said == question.answer)


def relaxed(question: Question, answer: str) -> float:
    """1.0 for a number within 5%, or the same text."""
    return max(chartqa.relaxed(reference, answer) for reference in references(question))


SCORERS: Mapping[str, tuple[Score | None, Figures | None]] = {
    "exact": (is_exact, None),
    "vqa": (vqa, None),
    "yes-no": (mme.score, None),
    "letter": (letter, None),
    "relaxed": (relaxed, None),
    "anls": (docvqa.score, None),
    "captions": (None, captions.summarize),
    "drawn": (drawn.score, None),
}
"""How one answer is scored, and what is made of all of them."""


def folder_task(scorer: str) -> Task:
    """The benchmark that a folder is, under one of `SCORERS`."""
    score, figures = SCORERS[scorer]
    return Task("folder", read_questions, score, figures, max_new_tokens=LONGEST_ANSWER)
