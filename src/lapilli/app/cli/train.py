"""`lapilli train`: run a recipe, or a folder of stages in order."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lapilli.app.cli.options import Debug, WrongCall, examples

EXAMPLES = examples(
    "lapilli train recipes/tiny",
    "lapilli train recipes/tiny/align.toml --set stage.steps=100 --out runs/trial",
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

    A folder of recipes runs in order. A run that was stopped goes on where it ended.
    """
    if not recipe.exists():
        raise WrongCall(f"{recipe}: no such recipe; name a TOML file or a folder of them")
    from lapilli.app.training import train_recipes

    train_recipes(recipe, out=out, settings=settings or [], resume=resume)
