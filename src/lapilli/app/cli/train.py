"""`lapilli train`: run a recipe, or a folder of stages in order."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lapilli.app.cli.options import Debug, WrongCall, examples

EXAMPLES = examples(
    "lapilli train recipes/tiny --out runs/tiny",
    "lapilli train recipes/tiny --out runs/trial --set stage.steps=50 --set drawn.pictures=500",
    "lapilli train recipes/tiny/4-instruct.toml --out runs/tiny",
)


def train(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="A recipe file, or a folder of stages.")
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", help="Where runs and checkpoints go.")
    ] = Path("runs"),
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a key of every stage, or drawn.KEY; repeatable.",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume/--no-resume", help="Go on in a folder that holds earlier work, or refuse it."
        ),
    ] = True,
    debug: Debug = False,
) -> None:
    """Train a model by a recipe.

    A folder of numbered recipes runs in order; its data.toml says what is drawn to learn from.
    The same command goes on where a stopped run ended. Each stage leaves its model in a folder
    named model, which --model takes.
    """
    if not recipe.exists():
        raise WrongCall(f"{recipe}: no such recipe; name a TOML file or a folder of them")
    from lapilli.app.training import train_recipes

    train_recipes(recipe, out=out, settings=settings or [], resume=resume)
