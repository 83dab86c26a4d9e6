"""`lapilli convert`: a model folder in another format, written whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lapilli.errors import CheckpointError
from lapilli.runtime import rename_durably

if TYPE_CHECKING:
    from lapilli.checkpoints.gguf import Kind
    from lapilli.model.llava import Llava
    from lapilli.processor.processor import Processor

_CARD = "MODEL_CARD.md"
_HUB_CARD = "README.md"
_LEGAL = ("LICENSE*", "LICENCE*", "NOTICE*", "COPYING*")
_LONGEST_TEXT = 2**20
"""In bytes, of a license or a card that goes along."""


@dataclass(frozen=True)
class Source:
    """A model as it was read, and how it is to be written.

    Attributes:
        name: for people.
        license: an SPDX name; empty where nobody has said.
        card: what MODEL_CARD.md says; empty for none.
        kind: of the numbers in GGUF.
        tell: says what is being done.
    """

    name: str
    license: str
    card: str
    model: Llava
    processor: Processor
    kind: Kind
    tell: Callable[[str], None]


def _write_native(folder: Path, source: Source) -> None:
    from lapilli.checkpoints import native

    native.save(folder, source.model, source.processor, card=source.card)


def _write_hf(folder: Path, source: Source) -> None:
    from lapilli.checkpoints import hf
    from lapilli.checkpoints.parity import follow

    model, processor = source.model, source.processor
    if processor.images.tiling is not None:  # of both ways to cut, that layout knows one
        model, processor = follow(model, processor, "hf")
    hf.save(folder, model, processor)
    _write_hub_card(folder, source)


def _write_gguf(folder: Path, source: Source) -> None:
    from lapilli.checkpoints import gguf

    gguf.save(
        folder,
        source.model,
        source.processor,
        kind=source.kind,
        name=source.name,
        license=source.license,
        progress=lambda file: source.tell(f"writing {file}"),
    )
    _write_hub_card(folder, source)


def _write_original(folder: Path, source: Source) -> None:
    from lapilli.checkpoints import original

    original.save(folder, source.model, source.processor)
    _write_hub_card(folder, source)


FORMATS: dict[str, Callable[[Path, Source], None]] = {
    "native": _write_native,
    "hf": _write_hf,
    "original": _write_original,
    "gguf": _write_gguf,
}
"""What a model can be written as, by the name that `--to` takes."""
KINDS: tuple[Kind, ...] = ("f32", "f16", "bf16", "q8_0")
"""How GGUF holds numbers."""


def convert(
    source: str,
    destination: Path,
    to: str,
    *,
    base: str | None = None,
    kind: Kind = "f16",
    vision_tower: str | None = None,
    allow_pickle: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> list[Path]:
    """Write a model in another format; its card and license texts go along.

    Weights keep the type in which they are stored, except in GGUF.

    Args:
        source: a known name or a model folder.
        destination: a folder that is empty or not there yet.
        to: a name in FORMATS.
        base: as in `lapilli.load`; with pickles, its own are read as well.
        kind: of the numbers in GGUF.
        vision_tower: as in `lapilli.load`.
        allow_pickle: read weights that are pickled; of files that come from someone you trust.
        tell: told what is being done.

    Returns:
        The files written.

    Raises:
        CheckpointError: there is no such model, it is damaged, it has no form in that format, or
            the destination is taken; then nothing is written.
    """
    check_free(destination)
    from lapilli.checkpoints.catalogue import license_of
    from lapilli.checkpoints.loading import find

    folder = find(source, allow_pickle=allow_pickle)
    scratch = destination.with_name(f".{destination.name}.{os.getpid()}.scratch")
    tell(f"reading {source}")
    license = license_of(source)
    partial = destination.with_name(f".{destination.name}.{os.getpid()}.partial")
    try:
        below = _find_base(folder, base, allow_pickle)
        model, processor = _load(folder, below, vision_tower, scratch if allow_pickle else None)
        read = Source(
            name=folder.resolve().name if license is None else source,
            license=license or "",
            card=_read_card(folder),
            model=model,
            processor=processor,
            kind=kind,
            tell=tell,
        )
        partial.mkdir(parents=True)
        tell(f"writing {destination}")
        FORMATS[to](partial, read)
        if below is not None:
            _copy_legal_texts(below, partial)
        _copy_legal_texts(folder, partial)
        if destination.is_dir():
            destination.rmdir()
        rename_durably(partial, destination)
    except OSError as error:
        raise CheckpointError(f"{destination}: cannot be written ({error.strerror})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(scratch, ignore_errors=True)
    return sorted(path for path in destination.rglob("*") if path.is_file())


def _find_base(folder: Path, base: str | None, allow_pickle: bool) -> Path | None:
    """The folder of the model that an adapter or a projector belongs to; None for a whole model."""
    from lapilli.checkpoints.loading import layout_of

    if not layout_of(folder).has_base:
        if base is not None:
            raise CheckpointError(f"{folder}: a whole model, which takes no base; leave it out")
        return None
    from lapilli.checkpoints.bases import find_base

    return find_base(folder, base, allow_pickle=allow_pickle)


def _load(
    folder: Path, base: Path | None, vision_tower: str | None, scratch: Path | None
) -> tuple[Llava, Processor]:
    """The model, read from copies of its folders in `scratch` where pickles are allowed."""
    from lapilli.checkpoints.loading import load_stored

    if scratch is not None:
        from lapilli.checkpoints.pickled import is_pickled, unpickled
        from lapilli.checkpoints.towers import find_tower

        if vision_tower is not None:
            place = find_tower(vision_tower, allow_pickle=True)
            vision_tower = str(unpickled(place, scratch / "tower") if is_pickled(place) else place)
        if is_pickled(folder):
            folder = unpickled(folder, scratch / "model")
        if base is not None and is_pickled(base):
            base = unpickled(base, scratch / "base")
    return load_stored(folder, base=base, vision_tower=vision_tower)


def check_free(destination: Path) -> None:
    """Refuse a destination that holds anything.

    Raises:
        CheckpointError: a file, or a folder with files in it.
    """
    if destination.is_dir():
        if any(destination.iterdir()):
            raise CheckpointError(f"{destination}: not empty; name a new folder")
    elif destination.exists() or destination.is_symlink():
        raise CheckpointError(f"{destination}: not a folder; name a new one")


# Texts that go along


def _front_matter(license: str) -> str:
    """What Hugging Face's hub reads at the head of a card."""
    lines = [f"license: {license.lower()}"] if license else []
    return "\n".join(["---", *lines, "pipeline_tag: image-text-to-text", "---", "", ""])


def _write_hub_card(folder: Path, source: Source) -> None:
    if not source.card:
        return
    has_own = source.card.startswith("---\n")
    head = "" if has_own else _front_matter(source.license)
    (folder / _HUB_CARD).write_text(head + source.card, encoding="utf-8")


def _read_card(folder: Path) -> str:
    """The card of a model folder; empty for none, and without a head that only the hub reads."""
    for name in (_CARD, _HUB_CARD):
        path = folder / name
        if path.is_file() and path.stat().st_size <= _LONGEST_TEXT:
            text = path.read_text(encoding="utf-8", errors="replace")
            head, _, rest = text.partition("\n---\n\n")
            ours = {_front_matter(license) for license in ("", _license_in(head))}
            return rest if f"{head}\n---\n\n" in ours else text
    return ""


def _license_in(head: str) -> str:
    lines = [line for line in head.splitlines() if line.startswith("license: ")]
    return lines[0].removeprefix("license: ") if lines else ""


def _copy_legal_texts(source: Path, destination: Path) -> None:
    for pattern in _LEGAL:
        for path in source.glob(pattern):
            if path.is_file() and path.stat().st_size <= _LONGEST_TEXT:
                shutil.copyfile(path, destination / path.name)
