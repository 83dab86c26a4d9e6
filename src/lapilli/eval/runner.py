"""Ask a responder the questions of a benchmark, and sum up what it answered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lapilli.errors import DataError
from lapilli.eval.metrics import bootstrap
from lapilli.messages import (
    Conversation,
    ImagePart,
    Message,
    Part,
    Question,
    Responder,
    Sampling,
    TextPart,
)

CHUNK = 64
"""Questions asked at once; a responder batches them as it sees fit."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What was answered to one question."""

    question_id: str
    text: str


@dataclass(frozen=True, slots=True)
class Category:
    """Scores of one kind of question.

    Attributes:
        mean: of all scores, 0-1.
        count: questions asked.
        low: lower end of the 95% bootstrap interval of the mean.
        high: upper end.
    """

    mean: float
    count: int
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Report:
    """Scores by category, in the order in which the categories first came."""

    categories: dict[str, Category]

    @property
    def mean(self) -> float:
        """Mean of the categories' means."""
        return sum(c.mean for c in self.categories.values()) / max(1, len(self.categories))

    def to_json(self) -> dict[str, Any]:
        """Names and numbers alone."""
        return {"mean": self.mean, "categories": {k: asdict(c) for k, c in self.categories.items()}}


def conversation(question: Question) -> Conversation:
    """The question as a user's message: the picture first, then the words."""
    parts: tuple[Part, ...] = (TextPart(question.text),)
    if question.image is not None:
        parts = (ImagePart(question.image), *parts)
    return (Message("user", parts),)


def run(
    questions: Sequence[Question],
    responder: Responder,
    *,
    sampling: Sampling | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Answer]:
    """Ask all questions and return the answers in the order of the questions.

    Args:
        questions: what to ask.
        responder: who answers.
        sampling: how answers are drawn; greedy by default.
        progress: called with the number of questions answered so far.
    """
    answers: list[Answer] = []
    for start in range(0, len(questions), CHUNK):
        chunk = questions[start : start + CHUNK]
        texts = [""] * len(chunk)
        asked = [conversation(question) for question in chunk]
        for piece in responder.respond(asked, sampling or Sampling()):
            texts[piece.index] += piece.text
        answers += [Answer(q.id, text) for q, text in zip(chunk, texts, strict=True)]
        if progress is not None:
            progress(len(answers))
    return answers


def summarize(
    questions: Sequence[Question],
    answers: Sequence[Answer],
    score: Callable[[Question, str], float],
) -> Report:
    """Score the answers, matched by question id, and sum up by category.

    Raises:
        DataError: a question has no answer.
    """
    texts = {answer.question_id: answer.text for answer in answers}
    scores: dict[str, list[float]] = {}
    for question in questions:
        if question.id not in texts:
            raise DataError(f"question {question.id}: no answer. Ask all questions, then sum up.")
        value = score(question, texts[question.id])
        scores.setdefault(question.category, []).append(value)
    return Report({name: _category(values) for name, values in scores.items()})


def _category(values: list[float]) -> Category:
    low, high = bootstrap(values)
    return Category(sum(values) / len(values), len(values), low, high)
