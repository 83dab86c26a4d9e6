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
    "lapilli eval pope --model llava-1.5-7b --data pope/ --json pope.json",
    "lapilli eval pope --data pope/ --answers answers.jsonl",
    "lapilli eval folder --data mine/ --scorer exact",
)

BENCHMARK = "a benchmark"
OPTIONS_OF = {
    "drawn": ("grade", "count", "split", "seed", "blind"),
    "photos": ("photos",),
    BENCHMARK: ("data", "answers", "grader", "grades", "scorer"),
}
"""Options that one kind of task alone has."""


class Split(StrEnum):
    """Which part of the questions is asked; held-out is read once, at the end."""

    VALIDATION = "validation"
    HELD_OUT = "held-out"


def _check_names(names: list[str]) -> list[str]:
    from lapilli.eval.tasks import TASKS

    known = ["drawn", "photos", "folder", *(name for name in TASKS if name != "drawn")]
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"{name!r} is not one of {', '.join(known)}.")
    return names


def evaluate(
    context: typer.Context,
    tasks: Annotated[
        list[str],
        typer.Argument(
            metavar="TASK...",
            callback=_check_names,
            help="drawn: scenes of simple shapes; photos: labelled photographs; folder: questions "
            "of your own; or benchmarks by their names, such as pope (a wrong name lists all).",
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
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Benchmarks: the data set's own files; of several, a folder with one each.",
        ),
    ] = None,
    answers: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Benchmarks: score these answers; with --model, ask what is missing and add it.",
        ),
    ] = None,
    grader: Annotated[
        str | None,
        typer.Option(metavar="NAME|FOLDER|ID", help="Benchmarks: a model that grades answers."),
    ] = None,
    grades: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Benchmarks: the grader's replies, kept like answers."),
    ] = None,
    scorer: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Folder: how it is scored, such as exact or vqa."),
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

    Progress goes to stderr. The figures of a run with the same seed can be compared. Answers to
    benchmarks are kept beside the file of --json, or in that of --answers, and asked once.
    """
    kind = tasks[0] if tasks[0] in OPTIONS_OF else BENCHMARK
    if len(tasks) > 1 and {"drawn", "photos"} & set(tasks):
        raise WrongCall("drawn and photos are measured alone; name one task")
    _refuse_options_of_others(context, kind)
    check_writable(json_path)
    check_writable(gallery)
    if kind == "photos":
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
    elif kind == "drawn":
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
    else:
        if data is None:
            raise WrongCall(f"eval {tasks[0]} needs its data set: name the folder with --data")
        if gallery is not None and len(tasks) > 1:
            raise WrongCall("--gallery shows one task; name one")
        from lapilli.app.benchmarks import eval_benchmarks

        # A model named in the environment alone does not add to a file that is to be scored.
        is_named = _is_given(context, "model")
        eval_benchmarks(
            tasks,
            data=data,
            model=model,
            is_asked=answers is None or is_named,
            answers=answers,
            grader=grader,
            grades=grades,
            scorer=scorer,
            device=device,
            quantize=quantize,
            json_path=json_path,
            gallery_path=gallery,
        )


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _refuse_options_of_others(context: typer.Context, kind: str) -> None:
    for other, names in OPTIONS_OF.items():
        for name in names:
            if other != kind and _is_given(context, name):
                raise WrongCall(f"--{name} goes with eval {other}; leave it out of eval {kind}")
