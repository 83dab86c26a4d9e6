"""`lapilli ask`: one question about one or more pictures."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from lapilli.app.cli.options import (
    Base,
    Debug,
    Device,
    Json,
    Model,
    Quantize,
    WrongCall,
    check_writable,
    examples,
    is_file,
)

EXAMPLES = examples(
    'lapilli ask photo.jpg "What is in this picture?"',
    'lapilli ask before.png after.png "What has changed?"',
    'lapilli ask photo.jpg "How many stars are there?" --json',
    "lapilli ask --questions questions.jsonl --out answers.jsonl",
    'lapilli ask photo.jpg "What is this?" --model my-adapter --base llava-1.5-7b',
)


def ask(
    images: Annotated[
        list[Path] | None,
        typer.Argument(metavar="IMAGE", help="One or more pictures.", show_default=False),
    ] = None,
    question: Annotated[
        str, typer.Argument(metavar="QUESTION", help="What to ask, in quotes.", show_default=False)
    ] = "",
    model: Model = None,
    base: Base = None,
    device: Device = "auto",
    quantize: Quantize = None,
    questions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Instead: many questions, JSON lines with question_id, text and image.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Where answers to --questions go, in the form of LLaVA's own evaluation. What "
            "is there already is not asked again.",
        ),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--images", metavar="FOLDER", help="Of the pictures; that of --questions if left out."
        ),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Ask a question about pictures, or many out of a file.

    The answer, and nothing else, goes to stdout.
    """
    if questions is not None:
        if out is None:
            raise WrongCall("--questions needs --out: a file for the answers")
        if images or question or as_json:
            raise WrongCall("--questions stands alone: leave out pictures, question and --json")
        check_writable(out)
        from lapilli.app.asking import ask_file

        count = ask_file(
            questions, out, images=folder, model=model, device=device, base=base, quantize=quantize
        )
        typer.echo(f"{count} answered; the answers are in {out}", err=True)
        return
    if out is not None or folder is not None:
        raise WrongCall("--out and --images go with --questions")
    pictures = _checked(images or [], question)
    from lapilli.assistant import MultimodalAssistant

    assistant = MultimodalAssistant(model, base=base, device=device, quantize=quantize)
    if as_json:
        answer = assistant.query(pictures, question)
        row = {
            "model": model,
            "images": [str(picture) for picture in pictures],
            "question": question,
            "answer": answer,
        }
        typer.echo(json.dumps(row, ensure_ascii=False))
    elif sys.stdout.isatty():
        for piece in assistant.stream(pictures, question):
            typer.echo(piece, nl=False)
        typer.echo()
    else:
        typer.echo(assistant.query(pictures, question))


def _checked(pictures: list[Path], question: str) -> list[Path]:
    """Return the pictures, or say what the call lacks before a model is loaded."""
    if not pictures and is_file(question):
        raise WrongCall('no question: put it last, in quotes: ask photo.jpg "..."')
    if not pictures:
        raise WrongCall('no picture: name one or more, then the question: ask photo.jpg "..."')
    if not question.strip():
        raise WrongCall('the question is empty: put it last, in quotes: ask photo.jpg "..."')
    if is_file(question):
        raise WrongCall(f"{question} is a file: put the question last, in quotes")
    return pictures
