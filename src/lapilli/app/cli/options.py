"""What the verbs share: their common options, and how a wrong call is said."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lapilli.errors import LapilliError


class WrongCall(LapilliError):  # noqa: N818 - named for what the person did
    """The command line makes no sense; exit code 2."""


@dataclass(slots=True)
class Settings:
    """What `main` must know of a call after it has failed."""

    debug: bool = False


class Grade(StrEnum):
    """How difficult drawn pictures are."""

    PLAIN = "plain"
    HARD = "hard"


def _remember_debug(context: typer.Context, value: bool) -> bool:
    settings = context.find_object(Settings)
    if settings is not None:
        settings.debug = settings.debug or value
    return value


def _check_bits(value: str | None) -> str | None:
    if value not in (None, "int8", "int4"):
        raise WrongCall(f"--quantize {value} is unknown; use int8 or int4, or leave it out")
    return value


def is_file(text: str) -> bool:
    """Whether `text` names a file; words too long for a name do not."""
    try:
        return Path(text).is_file()
    except OSError:
        return False


def check_writable(path: Path | None) -> None:
    """Refuse a file that cannot be written, before the work whose result it is to hold.

    Raises:
        WrongCall: it lies in no folder, is one, or may not be written.
    """
    if path is None or (path.exists() and not path.is_file() and not path.is_dir()):
        return  # a pipe or a terminal: opening it to see whether that goes would end its reader
    is_new = not path.exists()
    try:
        path.open("ab").close()
    except OSError as error:
        raise WrongCall(f"{path}: cannot be written ({error.strerror}); name another") from error
    if is_new:
        path.unlink()


def examples(*lines: str) -> str:
    """Return the closing part of a help page; `\\b` keeps its lines as they are."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        envvar="LAPILLI_MODEL",
        metavar="NAME|FOLDER|ID",
        help="A name that `lapilli models` lists, a model folder, or an id on the Hugging Face hub "
        "(ORG/NAME or ORG/NAME@REVISION), which is downloaded once. The embedded one if left out.",
    ),
]
Base = Annotated[
    str | None,
    typer.Option(
        "--base",
        metavar="NAME|FOLDER|ID",
        help="The model that an adapter, or a projector alone, belongs to, named as a model is. "
        "The one that its folder names if left out, which is not downloaded.",
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device", metavar="NAME", help="auto, cpu, cuda or cuda:0; auto takes a GPU if any."
    ),
]
Quantize = Annotated[
    str | None,
    typer.Option(
        "--quantize",
        callback=_check_bits,
        metavar="int8|int4",
        help="Keep the language model's weights in 8 or 4 bits: less memory, a little less exact.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Debug = Annotated[
    bool,
    typer.Option("--debug", callback=_remember_debug, help="Show the traceback of an error."),
]
