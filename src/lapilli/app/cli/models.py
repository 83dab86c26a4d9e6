"""`lapilli models`: the names that `--model` takes."""

from __future__ import annotations

import json
from dataclasses import asdict

import typer
from rich.console import Console
from rich.table import Table

from lapilli.app.cli.options import Debug, Json, examples

EXAMPLES = examples("lapilli models", "lapilli models --json")


def models(as_json: Json = False, debug: Debug = False) -> None:
    """List the models known by name, with their size and the verbs that take them.

    Memory is that of the weights alone, in fp32. A folder goes wherever a name does.
    """
    from lapilli.checkpoints.catalogue import entries

    known = entries()
    if as_json:
        typer.echo(json.dumps([asdict(entry) for entry in known], ensure_ascii=False, indent=2))
        return
    table = Table("name", "parameters", "disk", "memory", "license", "for", box=None)
    for entry in known:
        size = _shown(entry.size_bytes, "B") if entry.is_here else "not here"
        numbers = (_shown(entry.parameters), size, _shown(entry.memory_bytes, "B"))
        table.add_row(entry.name, *numbers, entry.license, ", ".join(entry.can))
    Console().print(table, markup=False)


def _shown(number: int | None, unit: str = "") -> str:
    """The number with a prefix that a person reads at a glance: "11.8 M", "23.6 MB"."""
    if number is None:
        return "-"
    power = min(3, (len(str(number)) - 1) // 3)
    digits = 1 if power else 0
    return f"{number / 1000**power:.{digits}f} {('', 'k', 'M', 'G')[power]}{unit}".rstrip()
