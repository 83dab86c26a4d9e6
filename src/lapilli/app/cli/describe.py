"""`lapilli describe`: captions or alt text for pictures and folders of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from lapilli.app.cli.options import (
    Base,
    Debug,
    Device,
    Json,
    Model,
    Quantize,
    WrongCall,
    examples,
)
from lapilli.errors import ImageError

if TYPE_CHECKING:
    from lapilli.assistant import MultimodalAssistant

EXAMPLES = examples(
    "lapilli describe photo.jpg",
    "lapilli describe photos/ --alt --json > alt.jsonl",
)
SUFFIXES = frozenset({".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
QUESTION = "Describe the picture."
ALT_QUESTION = "Write a short caption of this image."
ALT_MAX_CHARACTERS = 125
"""Some screen readers cut an alternative text after this many characters."""
BATCH_SIZE = 8


def describe(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH", help="Pictures and folders.")],
    alt: Annotated[
        bool, typer.Option("--alt", help=f"Alt text: at most {ALT_MAX_CHARACTERS} characters.")
    ] = False,
    as_json: Json = False,
    model: Model = None,
    base: Base = None,
    device: Device = "auto",
    quantize: Quantize = None,
    debug: Debug = False,
) -> None:
    """Describe pictures and folders.

    The result is a table, or with --json an object a line. A picture that cannot be opened is
    reported and passed over; the exit code is then 1.
    """
    pictures = _find_pictures(paths)
    from lapilli.assistant import MultimodalAssistant

    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    assistant = MultimodalAssistant(model, base=base, device=device, quantize=quantize)
    table = Table("picture", "alt text" if alt else "description")
    num_failed = 0
    batches = [pictures[i : i + BATCH_SIZE] for i in range(0, len(pictures), BATCH_SIZE)]
    shown = track(batches, "describing", console=errors, disable=not sys.stderr.isatty())
    for picture, said in _described(assistant, shown, ALT_QUESTION if alt else QUESTION):
        if isinstance(said, ImageError):
            errors.print(f"error: {said}", markup=False)
            num_failed += 1
            continue
        text = shorten(said, ALT_MAX_CHARACTERS) if alt else said
        if as_json:
            typer.echo(json.dumps({"image": str(picture), "text": text}, ensure_ascii=False))
        else:
            table.add_row(str(picture), text)
    if table.row_count:
        Console().print(table, markup=False)
    if num_failed:
        raise typer.Exit(1)


def shorten(text: str, limit: int) -> str:
    """Return `text` on one line, cut after a whole word where it passes `limit` characters."""
    text = " ".join(text.split())
    if len(text) <= limit:
        return text
    head = text[:limit]  # one character more than fits beside the ellipsis
    whole = head[: head.rfind(" ")] if " " in head else head[:-1]
    return whole.rstrip(" ,;:") + "…"


def _find_pictures(paths: Sequence[Path]) -> list[Path]:
    """Return the files as named, and folders walked in order."""
    pictures: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(
                p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and not p.is_dir()
            )
            if not inside:
                raise WrongCall(f"{path}: no pictures in this folder; name files or another one")
            pictures += inside
        else:
            pictures.append(path)
    return pictures


def _described(
    assistant: MultimodalAssistant, batches: Iterable[Sequence[Path]], question: str
) -> Iterator[tuple[Path, str | ImageError]]:
    """Yield every picture with its description, or with the reason why there is none."""
    for batch in batches:
        try:
            answers = assistant.query_many([(picture, question) for picture in batch])
        except ImageError:  # one of them is bad: ask for each by itself, to find which
            for picture in batch:
                yield picture, _describe_one(assistant, picture, question)
        else:
            yield from zip(batch, answers, strict=True)


def _describe_one(assistant: MultimodalAssistant, picture: Path, question: str) -> str | ImageError:
    try:
        return assistant.query(picture, question)
    except ImageError as error:
        return error
