"""Ask a responder the questions of a benchmark, and sum up what it answered."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lapilli.errors import DataError
from lapilli.eval.metrics import Figure, mean
from lapilli.eval.task import Figures, Score, Task
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
        count: questions scored.
        low: lower end of the 95% bootstrap interval of the mean.
        high: upper end.
        unread: answers in which nothing could be read. They count as wrong; grades that could
            not be read count as nothing.
    """

    mean: float
    count: int
    low: float
    high: float
    unread: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """What the answers are worth.

    Attributes:
        categories: scores by kind of question, in the order in which the kinds first came; empty
            where single answers have no score.
        figures: what the benchmark is quoted by, the foremost first.
        unread: ids of the questions in whose answers, or grades, nothing could be read.
    """

    categories: dict[str, Category]
    figures: dict[str, Figure] = field(default_factory=dict)
    unread: tuple[str, ...] = ()

    @property
    def mean(self) -> float:
        """Mean of the categories' means."""
        return sum(c.mean for c in self.categories.values()) / max(1, len(self.categories))

    def to_json(self) -> dict[str, Any]:
        """Names and numbers alone."""
        return {
            "mean": self.mean,
            "categories": {k: asdict(c) for k, c in self.categories.items()},
            "figures": {k: asdict(f) for k, f in self.figures.items()},
            "unread": list(self.unread),
        }


def conversation(question: Question) -> Conversation:
    """The question as a user's message: the pictures first, then the words."""
    pictures: tuple[Part, ...] = tuple(ImagePart(source) for source in question.images)
    return (Message("user", (*pictures, TextPart(question.text))),)


def run(
    questions: Sequence[Question],
    responder: Responder,
    *,
    sampling: Sampling | None = None,
    progress: Callable[[int], None] | None = None,
    known: Mapping[str, str] | None = None,
    keep: Callable[[Question, str], None] | None = None,
) -> list[Answer]:
    """Ask all questions and return the answers in the order of the questions.

    Args:
        questions: what to ask.
        responder: who answers.
        sampling: how answers are drawn; greedy by default.
        progress: called with the number of questions answered so far.
        known: answers by question id that need not be asked for.
        keep: called with each question that was asked and its answer, soon after it came.
    """
    texts = dict(known or {})
    missing = [question for question in questions if question.id not in texts]
    for start in range(0, len(missing), CHUNK):
        chunk = missing[start : start + CHUNK]
        said = [""] * len(chunk)
        asked = [conversation(question) for question in chunk]
        for piece in responder.respond(asked, sampling or Sampling()):
            said[piece.index] += piece.text
        for question, text in zip(chunk, said, strict=True):
            texts[question.id] = text
            if keep is not None:
                keep(question, text)
        if progress is not None:
            progress(len(questions) - len(missing) + start + len(chunk))
    return [Answer(question.id, texts[question.id]) for question in questions]


def grading_questions(
    task: Task, questions: Sequence[Question], answers: Sequence[Answer]
) -> list[Question]:
    """What a grader is asked about the answers, each under the id of its question.

    Raises:
        DataError: a question has no answer.
    """
    assert task.ask_grader is not None
    texts = _texts(questions, answers)
    return [
        Question(q.id, None, task.ask_grader(q, text), "", q.category)
        for q, text in zip(questions, texts, strict=True)
    ]


def report(task: Task, questions: Sequence[Question], answers: Sequence[Answer]) -> Report:
    """Score a benchmark.

    Args:
        answers: one to each question, matched by id; the grader's replies, where one grades.

    Raises:
        DataError: a question has no answer.
    """
    is_graded = task.ask_grader is not None
    return summarize(questions, answers, task.score, task.figures, leave_out_unread=is_graded)


def summarize(
    questions: Sequence[Question],
    answers: Sequence[Answer],
    score: Score | None,
    figures: Figures | None = None,
    *,
    leave_out_unread: bool = False,
) -> Report:
    """Score the answers, matched by question id, and sum up by category.

    Args:
        score: of one answer; None if single answers have none.
        figures: made of all answers; by default the mean of all scores in percent.
        leave_out_unread: keep answers that cannot be read out of every mean, instead of counting
            them as wrong.

    Raises:
        DataError: a question has no answer.
    """
    texts = _texts(questions, answers)
    scored: dict[str, list[float | None]] = {}
    unread: list[str] = []
    if score is not None:
        for question, text in zip(questions, texts, strict=True):
            value = score(question, text)
            scored.setdefault(question.category, []).append(value)
            if value is None:
                unread.append(question.id)
    worth = {
        name: [value or 0.0 for value in values if value is not None or not leave_out_unread]
        for name, values in scored.items()
    }
    counts = {name: values.count(None) for name, values in scored.items()}
    if figures is not None:
        made = figures(questions, texts)
    else:
        made = {"score": mean([value for values in worth.values() for value in values], scale=100)}
    if unread and not leave_out_unread:
        read = [value for values in scored.values() for value in values if value is not None]
        made["of those read"] = mean(read, scale=100)
    categories = {name: _category(values, counts[name]) for name, values in worth.items()}
    return Report(categories, made, tuple(unread))


def _texts(questions: Sequence[Question], answers: Sequence[Answer]) -> list[str]:
    """The answers in the order of the questions."""
    texts = {answer.question_id: answer.text for answer in answers}
    missing = [question.id for question in questions if question.id not in texts]
    if missing:
        raise DataError(
            f"question {missing[0]}: no answer ({len(missing)} of {len(questions)} have none). "
            "Ask all questions, then sum up."
        )
    return [texts[question.id] for question in questions]


def _category(values: list[float], unread: int) -> Category:
    found = mean(values)
    return Category(found.value, len(values), found.low, found.high, unread)
