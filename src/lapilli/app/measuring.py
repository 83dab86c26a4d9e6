"""`lapilli eval`: questions with known answers, asked of a model, scored and shown."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from lapilli.assistant import MultimodalAssistant
from lapilli.checkpoints.loading import EMBEDDED
from lapilli.errors import DataError
from lapilli.eval.gallery import write_gallery
from lapilli.eval.runner import Answer, Report, report, run
from lapilli.eval.tasks.drawn import DRAWN, score
from lapilli.messages import Question, Responder, Sampling
from lapilli.runtime import versions
from lapilli.synth.photos import load_photos, photo_symbols
from lapilli.synth.questions import Turn, ask_name, suite, to_question
from lapilli.synth.scenes import Drawn, Grade, draw_scene

Split = Literal["validation", "held-out"]
SEEDS = {"validation": 10_000_000, "held-out": 20_000_000}
"""First seed of each split's pictures; training draws from elsewhere (see `app.drawing`)."""
SEED_STEP = 1_000_000
"""From one `--seed` to the next; ten of them lie before the next split."""
LONGEST_ANSWER = DRAWN.max_new_tokens


@dataclass(frozen=True)
class Measured:
    """Questions, what was answered, and the scores."""

    questions: list[Question]
    answers: list[Answer]
    report: Report


def eval_drawn(
    model: str | Path | None,
    *,
    grade: Grade = "plain",
    per_kind: int = 100,
    split: Split = "validation",
    seed: int = 0,
    device: str = "auto",
    quantize: str | None = None,
    json_path: Path | None = None,
    gallery_path: Path | None = None,
    blind: str | Path | None = None,
) -> dict[str, Any]:
    """Ask about drawn scenes, print a table, and return its figures.

    The split "validation" uses training's wordings and pairs on new pictures. "held-out" uses
    wordings that training never had; beside it stand questions about colour-shape pairs that
    training never had.

    Args:
        per_kind: questions of each kind; as many again about unseen pairs in "held-out".
        quantize: the kind of smaller weights of the model, as in `lapilli.load`.
        blind: a model that was trained without pictures, for a column of its own.

    Raises:
        CheckpointError: there is no such model.
    """
    responder = MultimodalAssistant(model, device=device, quantize=quantize).engine
    unseeing = None if blind is None else MultimodalAssistant(blind, device=device).engine
    known = drawn_questions(grade, per_kind, split, seed, unseen=False)
    measured = {"score": _measure(responder, known)}
    if split == "held-out":
        unseen = drawn_questions(grade, per_kind, split, seed, unseen=True)
        measured["unseen pairs"] = _measure(responder, unseen)
    if unseeing is not None:
        measured["trained blind"] = _measure(unseeing, [replace(q, image=None) for q in known])
    title = f"drawn, {grade}, {split}, {per_kind} questions a kind"
    settings = {"model": model_name(model), "grade": grade, "split": split, "seed": seed}
    if quantize is not None:
        settings["quantize"] = quantize
    if blind is not None:
        settings["blind"] = model_name(blind)
    return _publish(title, measured, json_path, gallery_path, settings)


def eval_photos(
    model: str | Path | None,
    *,
    photos: Path,
    device: str = "auto",
    quantize: str | None = None,
    json_path: Path | None = None,
    gallery_path: Path | None = None,
) -> dict[str, Any]:
    """Ask what each validation photograph shows, print accuracy by set, and return the figures.

    The question is always the plain one, so that chance is one in as many as the set has names.

    Args:
        photos: the folder that holds photos/ and flags/.
        quantize: as in `eval_drawn`.

    Raises:
        CheckpointError: there is no such model.
        DataError: the folder holds no labelled photograph to ask about.
    """
    questions: list[Question] = []
    for index, photo in enumerate(load_photos(photos, "validation")):
        if photo.set != "coco":
            turn = ask_name(random.Random(index), photo_symbols(photo))
            question = to_question(turn, photo.path, f"{photo.set}-{index}")
            questions.append(replace(question, category=photo.set))
    if not questions:
        raise DataError(f"{photos}: no labelled photographs of one subject. Name another folder.")
    responder = MultimodalAssistant(model, device=device, quantize=quantize).engine
    measured = {"score": _measure(responder, questions)}
    settings = {"model": model_name(model)}
    if quantize is not None:
        settings["quantize"] = quantize
    return _publish("photographs", measured, json_path, gallery_path, settings)


def drawn_questions(
    grade: Grade, per_kind: int, split: Split, seed: int, *, unseen: bool
) -> list[Question]:
    """Return `per_kind` questions of each kind, all about unseen pairs or none of them."""

    def draw(number: int) -> Drawn:
        rng = np.random.default_rng(number)
        return draw_scene(rng, grade, unseen="only-some" if unseen else "never")

    def keep(turn: Turn) -> bool:
        return turn.extra["unseen"] == unseen

    first, is_held_out = SEEDS[split] + seed * SEED_STEP, split == "held-out"
    return list(suite(first, per_kind, draw=draw, held_out=is_held_out, keep=keep))


def model_name(model: str | Path | None) -> str:
    """What a model is called in results."""
    return EMBEDDED if model is None else str(model)


def ask(
    responder: Responder, questions: Sequence[Question], sampling: Sampling, **kept: Any
) -> list[Answer]:
    """Ask all questions and show how far it has come; further arguments as `run` takes them."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("asking", total=len(questions))

        def show(done: int) -> None:
            bar.update(task, completed=done)

        return run(questions, responder, sampling=sampling, progress=show, **kept)


def _measure(responder: Responder, questions: list[Question]) -> Measured:
    answers = ask(responder, questions, Sampling(max_new_tokens=LONGEST_ANSWER))
    return Measured(questions, answers, report(DRAWN, questions, answers))


def _publish(
    title: str,
    measured: dict[str, Measured],
    json_path: Path | None,
    gallery_path: Path | None,
    settings: dict[str, Any],
) -> dict[str, Any]:
    main = measured["score"]
    beside = {name: m.report.categories for name, m in measured.items() if m is not main}
    table = Table("kind", "count", "score", "95% interval", *beside, title=title)
    for name, category in main.report.categories.items():
        table.add_row(
            name,
            str(category.count),
            f"{category.mean:.3f}",
            f"{category.low:.3f}-{category.high:.3f}",
            *(f"{others[name].mean:.3f}" if name in others else "-" for others in beside.values()),
        )
    Console().print(table)
    figures: dict[str, Any] = {"title": title, **settings, "versions": versions()}
    figures |= {name: m.report.to_json() for name, m in measured.items()}
    if json_path:
        json_path.write_text(json.dumps(figures, indent=2) + "\n")
    if gallery_path:
        write_gallery(gallery_path, title, main.questions, main.answers, score)
    return figures
