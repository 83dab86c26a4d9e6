"""`lapilli models`: the names that `--model` takes."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from lapilli.app.cli.options import Debug, Json, examples

EXAMPLES = examples("lapilli models", "lapilli models --json")


def models(as_json: Json = False, debug: Debug = False) -> None:
    """List the models known by name."""
    from lapilli.checkpoints.catalogue import entries

    rows = [asdict(entry) for entry in entries()]
    if as_json:
        typer.echo(json.dumps(rows, ensure_ascii=False, default=str, indent=2))
    elif rows:
        table = Table(*(name.replace("_", " ") for name in rows[0]))
        for row in rows:
            table.add_row(*map(_cell, row.values()))
        Console().print(table, markup=False)


def _cell(value: Any) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case list() | tuple():
            return ", ".join(map(str, value))
    return str(value)
