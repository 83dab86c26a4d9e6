"""The models known by name: what they are, what they take, and whether they are on this disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lapilli.checkpoints import hub
from lapilli.checkpoints.loading import EMBEDDED, embedded_folder, find_here, known_names, read_spec
from lapilli.checkpoints.published import PUBLISHED, Published
from lapilli.checkpoints.shards import contents, weight_files
from lapilli.errors import CheckpointError
from lapilli.model.spec import LlavaSpec

BITS = {"bf16": 16, "int8": 8, "int4": 4}
"""Bits of a weight, by the type that it is kept in."""

_IN_PACKAGE = "inside the package"
_PACKAGE_LICENSE = "Apache-2.0"


@dataclass(frozen=True, slots=True)
class Entry:
    """One model.

    Attributes:
        name: what `--model` takes.
        source: where the weights come from: a repository on the hub, this package, a folder.
        parameters: how many numbers the weights hold, counted where they are here; None where
            that is not known.
        size_bytes: on disk; of a model that is not here, what 16 bits a parameter take.
        memory_bytes: of the weights alone, by the type they are kept in: parameters times bits.
        license: of the weights.
        folder: where it is on this disk; None where it is not, or not whole.
        stored_as: the type of most weights there, by the format's name for it ("BF16").
    """

    name: str
    source: str
    parameters: int | None
    size_bytes: int | None
    memory_bytes: Mapping[str, int] | None
    license: str
    folder: Path | None
    stored_as: str | None


@dataclass(frozen=True, slots=True)
class Details:
    """One model, looked at closely.

    Attributes:
        spec: its architecture; None where its files are not here.
        published: what is known without its files; None for a model without a known name.
    """

    entry: Entry
    spec: LlavaSpec | None
    published: Published | None


def entries() -> list[Entry]:
    """Return all models known by name; the network is not asked.

    Raises:
        CheckpointError: the embedded weights are damaged.
    """
    folder = embedded_folder()
    is_here = (folder / "model.safetensors").exists()
    found = [_entry(EMBEDDED, _IN_PACKAGE, _PACKAGE_LICENSE, folder if is_here else None)]
    for model in PUBLISHED.values():
        facts = (model.name, model.hub_id, model.license)
        try:
            found.append(_entry(*facts, hub.cached(hub.HubName(model.hub_id)), model.parameters))
        except CheckpointError:  # damaged in the cache: the others are to be listed all the same
            found.append(_entry(*facts, None, model.parameters))
    return found


def details(name: str) -> Details:
    """Return what is known of a model, by a known name, an id on the hub, or a folder.

    The network is not asked.

    Raises:
        CheckpointError: there is no such model here nor in the catalogue, or it is damaged.
    """
    folder = find_here(name)
    wanted = hub.hub_name(name) if folder is None else None
    if wanted is None:
        if folder is None:
            known = ", ".join(known_names())
            raise CheckpointError(
                f"{name}: neither a model folder nor a known name; known: {known}"
            )
        facts = (_IN_PACKAGE, _PACKAGE_LICENSE) if name == EMBEDDED else ("a folder", "unknown")
        return _details(_entry(name, *facts, folder), None)
    folder = hub.cached(wanted)
    ids = {model.hub_id: model for model in PUBLISHED.values()}
    published = ids.get(wanted.repository)
    if published is None:
        if folder is None:
            raise CheckpointError(
                f"{name}: not in the hub's cache; name it to --model once, which downloads it"
            )
        return _details(_entry(name, str(wanted), "unknown", folder), None)
    facts = (str(wanted), published.license)
    return _details(_entry(name, *facts, folder, published.parameters), published)


def license_of(name: str) -> str | None:
    """Return the licence of a model by its known name; None for a folder, or an id on the hub."""
    if name == EMBEDDED:
        return _PACKAGE_LICENSE
    return PUBLISHED[name].license if name in PUBLISHED else None


def memory_bytes(parameters: int) -> dict[str, int]:
    """Return what weights take by the type that they are kept in, without scales."""
    return {dtype: parameters * bits // 8 for dtype, bits in BITS.items()}


def _entry(
    name: str, source: str, license_: str, folder: Path | None, parameters: int | None = None
) -> Entry:
    size_bytes = stored_as = None
    if folder is not None:
        found = contents(weight_files(folder))
        parameters, size_bytes, stored_as = found.parameters, found.size_bytes, found.dtype
    memory = memory_bytes(parameters) if parameters is not None else None
    if size_bytes is None and memory is not None:
        size_bytes = memory["bf16"]
    return Entry(name, source, parameters, size_bytes, memory, license_, folder, stored_as)


def _details(entry: Entry, published: Published | None) -> Details:
    spec = read_spec(entry.folder) if entry.folder is not None else None
    return Details(entry, spec, published)
