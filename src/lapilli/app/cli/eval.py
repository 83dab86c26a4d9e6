"""`lapilli eval`: measure a model."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lapilli.app.cli.options import Debug, Device, Grade, Model, examples

EXAMPLES = examples(
    "lapilli eval drawn",
    "lapilli eval drawn --grade hard --count 1000 --split held-out --json scores.json",
)


class Task(StrEnum):
    """What can be measured."""

    DRAWN = "drawn"


class Split(StrEnum):
    """Which part of the questions is asked; held-out is read once, at the end."""

    VALIDATION = "validation"
    HELD_OUT = "held-out"


def evaluate(
    task: Annotated[Task, typer.Argument(metavar="TASK", help="drawn: scenes of simple shapes.")],
    model: Model = None,
    grade: Annotated[Grade, typer.Option(help="How difficult the pictures are.")] = Grade.PLAIN,
    count: Annotated[int, typer.Option(min=1, help="Questions of each kind.")] = 100,
    split: Annotated[Split, typer.Option(help="Which questions are asked.")] = Split.VALIDATION,
    seed: Annotated[int, typer.Option(help="Another seed draws other pictures.")] = 0,
    json_path: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the figures there.")
    ] = None,
    gallery: Annotated[
        Path | None,
        typer.Option(metavar="FILE.html", help="Write a page of right and wrong answers."),
    ] = None,
    device: Device = "auto",
    debug: Debug = False,
) -> None:
    """Measure a model and print a table of its scores."""
    from lapilli.app.measuring import eval_drawn

    eval_drawn(
        model,
        grade=grade.value,
        per_kind=count,
        split=split.value,
        seed=seed,
        device=device,
        json_path=json_path,
        gallery_path=gallery,
    )
