"""`lapilli models`: the names that `--model` takes, and what is behind one."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from lapilli.app.cli.options import Debug, Json, examples

if TYPE_CHECKING:
    from lapilli.checkpoints.catalogue import Details, Entry

EXAMPLES = examples("lapilli models", "lapilli models --json", "lapilli models show llava-1.5-7b")
SHOW_EXAMPLES = examples(
    "lapilli models show lapilli-tiny",
    "lapilli models show llava-hf/llava-1.5-7b-hf",
    "lapilli models show runs/tiny/4-instruct/model --json",
)

app = typer.Typer(
    epilog=EXAMPLES,
    invoke_without_command=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback()
def models(context: typer.Context, as_json: Json = False, debug: Debug = False) -> None:
    """List the models known by name: their size, their licence, and which are on this disk.

    bf16, int8 and int4 are the memory of the weights alone: parameters times 2, 1 and a half
    byte. Other models go by their folder, or by their id on the hub.
    """
    if context.invoked_subcommand is not None:
        return
    from lapilli.checkpoints.catalogue import entries

    known = entries()
    if as_json:
        typer.echo(_as_json([_row(entry) for entry in known]))
        return
    table = Table(
        "name", "parameters", "bf16", "int8", "int4", "license", "here",
        box=None, pad_edge=False, padding=(0, 2, 0, 0),
    )  # fmt: skip
    for entry in known:
        memory = entry.memory_bytes or {}
        sizes = (_shown(memory.get(dtype), "B") for dtype in ("bf16", "int8", "int4"))
        here = "yes" if entry.folder else "no"
        table.add_row(entry.name, _shown(entry.parameters), *sizes, entry.license, here)
    Console().print(table, markup=False)


@app.command(epilog=SHOW_EXAMPLES)
def show(
    name: Annotated[
        str, typer.Argument(metavar="NAME|FOLDER|ID", help="A name, a model folder, or a hub id.")
    ],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what is known of a model: its architecture, its size, its licence.

    The numbers of the architecture are shown where the model is on this disk; nothing is
    downloaded.
    """
    from lapilli.checkpoints.catalogue import details

    found = details(name)
    if as_json:
        typer.echo(_as_json(_described(found)))
        return
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for label, value in _lines(found):
        table.add_row(label, value)
    Console().print(table, markup=False)


def _row(entry: Entry) -> dict[str, Any]:
    folder = str(entry.folder) if entry.folder else None
    return asdict(entry) | {"folder": folder, "is_here": entry.folder is not None}


def _described(found: Details) -> dict[str, Any]:
    """All that is known, for a program."""
    spec, published = found.spec, found.published
    return {
        **_row(found.entry),
        "features_per_image": spec.vision.num_features if spec else None,
        "published": asdict(published) if published else None,
        "spec": asdict(spec) if spec else None,
    }


def _lines(found: Details) -> list[tuple[str, str]]:
    """All that is known, for a person: labels and values."""
    entry, spec, published = found.entry, found.spec, found.published
    memory = entry.memory_bytes or {}
    lines = [
        ("name", entry.name),
        ("source", entry.source),
        ("here", str(entry.folder) if entry.folder else "no: --model downloads it"),
        ("license", entry.license),
        ("parameters", _shown(entry.parameters)),
        ("disk", _shown(entry.size_bytes, "B") + (f" in {entry.stored_as}" if spec else "")),
        ("memory", ", ".join(f"{_shown(size, 'B')} in {kind}" for kind, size in memory.items())),
    ]
    if published is not None:
        tiles = f", up to {published.max_tiles} tiles" if published.max_tiles > 1 else ""
        lines += [
            ("vision tower", published.vision_tower),
            ("projector", published.projector),
            ("decoder", published.decoder),
            ("picture", f"{published.features_per_tile} features{tiles}"),
            ("context", f"{published.context} tokens"),
        ]
    elif spec is not None:
        lines += [
            ("picture", f"{spec.vision.num_features} features"),
            ("context", f"{spec.decoder.max_positions} tokens"),
        ]
    if spec is not None:
        lines += _numbers(spec)
    return lines


def _numbers(spec: Any, prefix: str = "") -> list[tuple[str, str]]:
    """The fields of a specification, with those of its parts, as dotted names and values."""
    lines = []
    for field in fields(spec):
        value = getattr(spec, field.name)
        if is_dataclass(value):
            lines += _numbers(value, f"{prefix}{field.name}.")
        else:
            lines.append((f"{prefix}{field.name}", str(value)))
    return lines


def _as_json(content: Any) -> str:
    return json.dumps(content, ensure_ascii=False, indent=2)


def _shown(number: int | None, unit: str = "") -> str:
    """Three digits and a prefix that a person reads at a glance: "7.06 B", "23.6 MB"."""
    if number is None:
        return "-"
    power = min(3, (len(str(number)) - 1) // 3)
    scaled = number / 1000**power
    digits = 0 if not power or scaled >= 100 else 1 if scaled >= 10 else 2
    prefix = ("", "k", "M", "G" if unit else "B")[power]
    return f"{scaled:.{digits}f} {prefix}{unit}".rstrip()
