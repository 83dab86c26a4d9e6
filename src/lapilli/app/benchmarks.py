"""`lapilli eval` of published benchmarks: read, asked or taken from a file, scored and shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lapilli.app.measuring import ask, model_name
from lapilli.assistant import MultimodalAssistant
from lapilli.errors import ConfigError, DataError
from lapilli.eval.answers import Keeper, digest, match, models
from lapilli.eval.gallery import write_gallery
from lapilli.eval.runner import Answer, Report, grading_questions, report
from lapilli.eval.task import Task, check_pictures
from lapilli.eval.tasks import TASKS
from lapilli.eval.tasks.folder import SCORERS, folder_task
from lapilli.messages import Question, Responder, Sampling
from lapilli.runtime import versions

GRADE_TOKENS = 256
"""Longest reply of a grader."""


class Model:
    """A model that is loaded when it is first asked; its name alone costs nothing."""

    def __init__(self, name: str | Path | None, device: str, quantize: str | None = None) -> None:
        self.name, self._name, self._device = model_name(name), name, device
        self.quantize = quantize

    @cached_property
    def responder(self) -> Responder:
        """Who answers."""
        assistant = MultimodalAssistant(self._name, device=self._device, quantize=self.quantize)
        return assistant.engine


@dataclass(frozen=True)
class Scored:
    """A benchmark with its questions, answers and scores, and how they came about."""

    task: Task
    questions: list[Question]
    answers: list[Answer]
    report: Report
    recipe: dict[str, Any]


def eval_benchmarks(
    names: Sequence[str],
    *,
    data: Path,
    model: str | Path | None = None,
    is_asked: bool = True,
    answers: Path | None = None,
    grader: str | None = None,
    grades: Path | None = None,
    scorer: str | None = None,
    device: str = "auto",
    quantize: str | None = None,
    json_path: Path | None = None,
    gallery_path: Path | None = None,
) -> dict[str, Any]:
    """Score benchmarks, print their tables, and return the figures.

    Args:
        names: which; of several, `data` holds a folder with each one's name, and `answers` and
            `grades` are folders of NAME.jsonl.
        data: the folder of the data set's own files.
        is_asked: ask the model what is missing in `answers`; otherwise nothing may be missing.
        answers: file of answers, read first and added to.
        grader: a model that grades what is graded.
        grades: file of the grader's replies, read first and added to.
        scorer: how the task "folder" is scored.

    Raises:
        ConfigError: there is no such benchmark or scorer.
        DataError: a file is missing or malformed, or a question has no answer.
    """
    tasks = [find_task(name, scorer) for name in names]
    several = len(tasks) > 1
    asked = Model(model, device, quantize) if is_asked else None
    judge = None if grader is None else Model(grader, device)
    read = [(task, task.load(data / task.name if several else data)) for task in tasks]
    scored = []
    for task, questions in read:
        kept = _file(answers, task.name, several) or (_beside(json_path, task) if asked else None)
        said, recipe = _answer(questions, kept, asked, task.max_new_tokens)
        recipe["data"] = {"questions": len(questions), "sha256": digest(questions)}
        replies = said
        if task.ask_grader is not None:
            graded = grading_questions(task, questions, said)
            if grades is None and judge is None:
                raise DataError(f"{task.name}: its answers are graded; add --grader or --grades")
            kept = _file(grades, task.name, several)
            replies, recipe["grades"] = _answer(graded, kept, judge, GRADE_TOKENS)
        found = report(task, questions, replies)
        scored.append(Scored(task, questions, said, found, recipe))
    for one in scored:
        _show(one)
    told = {"versions": versions(), "tasks": {s.task.name: _to_json(s) for s in scored}}
    if json_path:
        json_path.write_text(json.dumps(told, indent=2) + "\n")
    if gallery_path:
        _write_gallery(gallery_path, scored)
    return told


def find_task(name: str, scorer: str | None = None) -> Task:
    """The benchmark of that name; "folder" needs a scorer.

    Raises:
        ConfigError: there is no such benchmark or scorer.
    """
    if name == "folder":
        if scorer is None or scorer not in SCORERS:
            raise ConfigError(f"scorer {scorer!r} is unknown; use --scorer {', '.join(SCORERS)}")
        return folder_task(scorer)
    if name not in TASKS:
        raise ConfigError(f"benchmark {name!r} is unknown; use folder, {', '.join(TASKS)}")
    return TASKS[name]


def _file(path: Path | None, name: str, several: bool) -> Path | None:
    return path / f"{name}.jsonl" if path is not None and several else path


def _beside(json_path: Path | None, task: Task) -> Path | None:
    """Where answers are kept if no file for them is named."""
    return None if json_path is None else json_path.with_suffix(f".{task.name}.jsonl")


def _answer(
    questions: list[Question], kept: Path | None, model: Model | None, max_new_tokens: int
) -> tuple[list[Answer], dict[str, Any]]:
    """The answers, from the file where they are there and else from the model, and their recipe."""
    if model is None:
        assert kept is not None
        if not kept.is_file():
            raise DataError(f"{kept}: no such file of answers; name one, or add --model")
        known = match(questions, kept)
        recipe: dict[str, Any] = {"model": ", ".join(models(kept)), "answers": str(kept)}
        return [Answer(q.id, known[q.id]) for q in questions if q.id in known], recipe
    sampling = Sampling(max_new_tokens=max_new_tokens)
    settings: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "temperature": sampling.temperature,
    }
    if model.quantize is not None:
        settings["quantize"] = model.quantize
    recipe = {"model": model.name, **settings, "answers": None if kept is None else str(kept)}
    keeper = None if kept is None else Keeper(kept, model.name, settings)
    known = keeper.resume(questions) if keeper else {}
    missing = [question for question in questions if question.id not in known]
    if not missing:
        return [Answer(q.id, known[q.id]) for q in questions], recipe
    check_pictures(missing)
    keep = keeper.keep if keeper else None
    return ask(model.responder, questions, sampling, known=known, keep=keep), recipe


def _to_json(scored: Scored) -> dict[str, Any]:
    return {**scored.report.to_json(), "recipe": scored.recipe}


def _show(scored: Scored) -> None:
    found, console = scored.report, Console()
    told = f"{scored.task.name}, {len(scored.questions)} questions, {scored.recipe['model']}"
    table = Table("figure", "value", "95% interval", title=told)
    for name, one in found.figures.items():
        table.add_row(name, f"{one.value:.1f}", f"{one.low:.1f}-{one.high:.1f}")
    console.print(table)
    if len(found.categories) > 1:
        table = Table("kind", "count", "score", "95% interval", "unread")
        for name, kind in found.categories.items():
            interval = f"{100 * kind.low:.1f}-{100 * kind.high:.1f}"
            row = str(kind.count), f"{100 * kind.mean:.1f}", interval, str(kind.unread)
            table.add_row(name, *row)
        console.print(table)
    if found.unread:
        is_graded = scored.task.ask_grader is not None
        how = "grades, left out" if is_graded else "answers, counted as wrong"
        console.print(f"{len(found.unread)} {how}: nothing could be read in them")


def _write_gallery(path: Path, scored: Sequence[Scored]) -> None:
    (one,) = scored
    score = one.task.score
    if score is None or one.task.ask_grader is not None:
        raise DataError(f"{one.task.name}: single answers have no score to show in a gallery")
    write_gallery(
        path, one.task.name, one.questions, one.answers, lambda q, text: score(q, text) or 0.0
    )
