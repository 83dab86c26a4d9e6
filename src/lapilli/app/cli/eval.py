"""`lapilli eval`: measure a model."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lapilli.app.cli.options import (
    Debug,
    Device,
    Grade,
    Model,
    Quantize,
    WrongCall,
    check_writable,
    examples,
)

EXAMPLES = examples(
    "lapilli eval drawn",
    "lapilli eval drawn --grade hard --count 1000 --split held-out --json scores.json",
    "lapilli eval drawn --model runs/tiny/4-instruct/model --gallery answers.html",
    "lapilli eval photos --photos data/ --json photos.json",
)


class Task(StrEnum):
    """What can be measured."""

    DRAWN = "drawn"
    PHOTOS = "photos"


OPTIONS_OF = {
    Task.DRAWN: ("grade", "count", "split", "seed", "blind"),
    Task.PHOTOS: ("photos",),
}
"""Options that one task alone has."""


class Split(StrEnum):
    """Which part of the questions is asked; held-out is read once, at the end."""

    VALIDATION = "validation"
    HELD_OUT = "held-out"


def evaluate(
    context: typer.Context,
    task: Annotated[
        Task,
        typer.Argument(
            metavar="TASK", help="drawn: scenes of simple shapes; photos: labelled photographs."
        ),
    ],
    model: Model = None,
    grade: Annotated[
        Grade, typer.Option(help="How difficult the drawn pictures are.")
    ] = Grade.PLAIN,
    count: Annotated[int, typer.Option(min=1, help="Drawn: questions of each kind.")] = 100,
    split: Annotated[
        Split, typer.Option(help="Drawn: which questions are asked.")
    ] = Split.VALIDATION,
    seed: Annotated[int, typer.Option(min=0, max=9, help="Another seed draws other pictures.")] = 0,
    blind: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FOLDER",
            help="Drawn: a model trained without pictures, for a column beside the score.",
        ),
    ] = None,
    photos: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Photos: the folder with photos/ and flags/."),
    ] = None,
    json_path: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the figures there.")
    ] = None,
    gallery: Annotated[
        Path | None,
        typer.Option(metavar="FILE.html", help="Write a page of right and wrong answers."),
    ] = None,
    device: Device = "auto",
    quantize: Quantize = None,
    debug: Debug = False,
) -> None:
    """Measure a model and print a table of its scores.

    Progress goes to stderr. The figures of a run with the same seed can be compared.
    """
    _refuse_options_of_others(context, task)
    check_writable(json_path)
    check_writable(gallery)
    if task is Task.PHOTOS:
        if photos is None:
            raise WrongCall("eval photos needs photographs: name their folder with --photos")
        from lapilli.app.measuring import eval_photos

        eval_photos(
            model,
            photos=photos,
            device=device,
            quantize=quantize,
            json_path=json_path,
            gallery_path=gallery,
        )
        return
    from lapilli.app.measuring import eval_drawn

    eval_drawn(
        model,
        grade=grade.value,
        per_kind=count,
        split=split.value,
        seed=seed,
        device=device,
        quantize=quantize,
        json_path=json_path,
        gallery_path=gallery,
        blind=blind,
    )


def _refuse_options_of_others(context: typer.Context, task: Task) -> None:
    for other, names in OPTIONS_OF.items():
        for name in names:
            source = context.get_parameter_source(name)
            if other is not task and source is not None and source.name == "COMMANDLINE":
                raise WrongCall(
                    f"--{name} goes with eval {other.value}; leave it out of eval {task.value}"
                )
