"""A folder of one's own questions, scored by whichever way is named."""

from __future__ import annotations

from collections.abc import Mapping

from lapilli.eval.metrics import exact
from lapilli.eval.questions import read_questions, references
from lapilli.eval.task import Figures, Score, Task
from lapilli.eval.tasks import drawn, mme
from lapilli.eval.vqa_accuracy import accuracy
from lapilli.messages import Question

LONGEST_ANSWER = 128


def is_exact(question: Question, answer: str) -> float:
    """1.0 if the answer is one of the references, after evening out their writing."""
    return max(exact(reference, answer) for reference in references(question))


def vqa(question: Question, answer: str) -> float:
    """How many of several people agree."""
    return accuracy(references(question), answer)


SCORERS: Mapping[str, tuple[Score | None, Figures | None]] = {
    "exact": (is_exact, None),
    "vqa": (vqa, None),
    "yes-no": (mme.score, None),
    "drawn": (drawn.score, None),
}
"""How one answer is scored, and what is made of all of them."""


def folder_task(scorer: str) -> Task:
    """The benchmark that a folder is, under one of `SCORERS`."""
    score, figures = SCORERS[scorer]
    return Task("folder", read_questions, score, figures, max_new_tokens=LONGEST_ANSWER)
