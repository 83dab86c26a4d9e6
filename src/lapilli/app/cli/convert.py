"""`lapilli convert`: a model for another program."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lapilli.app.cli.options import Base, Debug, WrongCall, examples
from lapilli.app.converting import FORMATS, KINDS, check_free
from lapilli.app.converting import convert as convert_model
from lapilli.errors import CheckpointError

EXAMPLES = examples(
    "lapilli convert lapilli-tiny tiny-hf --to hf",
    "lapilli convert runs/tiny/4-instruct/model tiny-gguf --to gguf --type q8_0",
    "lapilli convert tiny-hf tiny --to native",
    "lapilli convert my-adapter merged --to hf --base llava-1.5-7b",
    "lapilli convert llava-v1.5-7b llava --to hf --vision-tower clip-vit-large-patch14-336",
)


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="A name that `lapilli models` lists, an id on the hub, or a model folder of "
            "Lapilli, Hugging Face or the original LLaVA.",
        ),
    ],
    destination: Annotated[
        Path, typer.Argument(metavar="DST", help="A folder that is not there yet, or empty.")
    ],
    to: Annotated[
        str,
        typer.Option("--to", metavar="|".join(FORMATS), help="The format to write."),
    ],
    kind: Annotated[
        str | None,
        typer.Option(
            "--type", metavar="|".join(KINDS), help="How gguf holds numbers; f16 if left out."
        ),
    ] = None,
    base: Base = None,
    vision_tower: Annotated[
        str | None,
        typer.Option(
            "--vision-tower",
            metavar="FOLDER|ID",
            help="The vision tower of an original LLaVA that has it elsewhere: a folder, or an id "
            "on the hub, which is downloaded once.",
        ),
    ] = None,
    allow_pickle: Annotated[
        bool,
        typer.Option(
            "--allow-pickle",
            help="Read, and download, weights in .bin files, which can run code; only from people "
            "you trust.",
        ),
    ] = False,
    debug: Debug = False,
) -> None:
    """Write a model in another format, for another program or to train on.

    The files written go to stdout. Native, hf and original keep every number; gguf is for
    llama.cpp, in two files, of which one holds the vision tower. An adapter, or a projector
    alone, becomes a whole model with its base. A failure leaves nothing behind.
    """
    if to not in FORMATS:
        raise WrongCall(f"--to {to} is unknown; use {', '.join(FORMATS)}")
    if kind is not None and to != "gguf":
        raise WrongCall(f"--type goes with --to gguf; {to} keeps every number")
    chosen = next((known for known in KINDS if known == (kind or "f16")), None)
    if chosen is None:
        raise WrongCall(f"--type {kind} is unknown; use {', '.join(KINDS)}")
    try:
        check_free(destination)
    except CheckpointError as error:
        raise WrongCall(str(error)) from error
    for path in convert_model(
        source,
        destination,
        to,
        base=base,
        kind=chosen,
        vision_tower=vision_tower,
        allow_pickle=allow_pickle,
        tell=lambda what: typer.echo(what, err=True),
    ):
        typer.echo(path)
