"""`lapilli data`: make data to learn from."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lapilli.app.cli.options import Debug, WrongCall, examples

EXAMPLES = examples(
    "lapilli data make drawn drawn/ --pictures 1000",
    "lapilli data make drawn drawn/ --hard 0 --seed 7",
)

app = typer.Typer(
    help="Make data to learn from.",
    epilog=EXAMPLES,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


class Kind(StrEnum):
    """What can be made."""

    DRAWN = "drawn"


@app.callback()
def _group() -> None:
    """Keep `make` a verb of its own while it is the only one."""


@app.command(epilog=EXAMPLES)
def make(
    kind: Annotated[Kind, typer.Argument(metavar="KIND", help="drawn: scenes of simple shapes.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to fill.")],
    pictures: Annotated[int, typer.Option(min=1, help="Drawn scenes for training.")] = 1000,
    collages: Annotated[int, typer.Option(min=0, help="Scenes pasted from photographs.")] = 0,
    texts: Annotated[int, typer.Option(min=0, help="Scenes in words, without a picture.")] = 0,
    hard: Annotated[float, typer.Option(min=0, max=1, help="Share of the hard grade.")] = 0.45,
    seed: Annotated[int, typer.Option(min=0, help="The same seed draws the same.")] = 1,
    photos: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Photographs: subjects, backgrounds, collages."),
    ] = None,
    books: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Text files to learn language from.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Draw pictures and write conversations about them as LLaVA JSON.

    A tenth as many, at most 500, are made for validation. Each line of a file is one record.
    """
    if out.exists() and not out.is_dir():
        raise WrongCall(f"{out}: a file; name a folder to fill")
    for name, folder in (("--photos", photos), ("--books", books)):
        if folder is not None and not folder.is_dir():
            raise WrongCall(f"{name} {folder}: no such folder")
    if collages and photos is None:
        raise WrongCall("--collages are made of photographs: name their folder with --photos")
    from lapilli.app.drawing import DrawnData, make_drawn

    data = DrawnData(
        pictures=pictures,
        collages=collages,
        texts=texts,
        hard=hard,
        seed=seed,
        photos=photos,
        books=books,
    )
    make_drawn(data, out)
