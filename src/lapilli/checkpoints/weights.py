"""Weights in safetensors: written, read with every fault named, and given to a model.

Files are mapped into memory. Weights that change neither type nor device stay where the file lies
and are read when they are looked at; others are converted one after the other.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lapilli.errors import CheckpointError
from lapilli.model.llava import Llava
from lapilli.model.lora import lora_layers
from lapilli.model.quantize import quantized_layers

FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""Types that a model computes in, by the format's names for them."""

_READERS = 2
"""Threads that convert weights: while one waits for memory, the other computes."""

_MAX_SHOWN = 8
"""Faults that a message lists; a folder of another architecture has hundreds."""


def stored(model: Llava) -> dict[str, Tensor]:
    """Return the weights that a folder holds: all, save a head that is the embeddings.

    Raises:
        CheckpointError: the model has an adapter, or weights of 8 or 4 bits.
    """
    if any(quantized_layers(model)):
        raise CheckpointError(
            "weights of 8 or 4 bits cannot be written; load the model without `quantize`"
        )
    if lora_layers(model):
        raise CheckpointError(
            "the model has an adapter; merge it, or write the adapter alone "
            "(lapilli.checkpoints.lora.save)"
        )
    shared = _shared(model)
    return {name: value for name, value in model.state_dict().items() if name not in shared}


def _shared(model: nn.Module) -> dict[str, str]:
    """Names of weights that are another's, a tied head's, to the name of that other."""
    names: dict[int, str] = {}
    named = model.named_parameters(remove_duplicate=False)
    firsts = {name: names.setdefault(id(weight), name) for name, weight in named}
    return {name: first for name, first in firsts.items() if name != first}


def write_weights(
    path: Path,
    weights: Mapping[str, Tensor],
    metadata: dict[str, str] | None = None,
    *,
    beside: str = "config.json",
) -> None:
    """Write tensors, by their names, beside the folder's configuration.

    Raises:
        CheckpointError: the disk is full, or the file cannot be written.
    """
    try:
        save_file({name: value.contiguous() for name, value in weights.items()}, path, metadata)
    except SafetensorError as error:
        raise CheckpointError(
            f"{path.name}: cannot be written ({error}); free some space"
        ) from error
    # The library lets its owner alone read the file; a model folder is shared as a whole.
    shutil.copymode(path.with_name(beside), path)


def read_weights(
    path: Path, device: torch.device | str, dtype: torch.dtype | None
) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by their names in it.

    Args:
        dtype: of floating-point numbers; None keeps the stored one.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    with _opened(path, device) as file:
        return {name: _cast(file.get_tensor(name), dtype) for name in file.keys()}  # noqa: SIM118


@contextmanager
def _opened(path: Path, device: torch.device | str) -> Iterator[Any]:
    """Map a safetensors file, whose header must agree with its size."""
    if not path.exists():
        raise CheckpointError(f"{path}: missing; copy it beside config.json")
    try:
        with safe_open(path, "pt", device=str(device)) as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); copy it again") from error


def _cast(value: Tensor, dtype: torch.dtype | None) -> Tensor:
    return value.to(dtype=dtype) if value.is_floating_point() else value


@dataclass(frozen=True)
class Source:
    """Files that hold a model's weights, or those of a part of it.

    Attributes:
        files: one, or the shards.
        where: the file or folder, for messages.
        renamed: from a name in the files to ours; None for a weight that is not needed.
        shown: from a name of ours to the one that the files know, for messages.
        part: how our names of the weights begin that are missed here first.
    """

    files: Sequence[Path]
    where: Path
    renamed: Callable[[str], str | None] = str
    shown: Callable[[str], str] = str
    part: str = ""


def fill_from_files(
    model: Llava,
    sources: Sequence[Source],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> None:
    """Give a model the weights of its files, one file after the other.

    A tied head becomes the embeddings, whatever else was stored.

    All headers are judged before a weight is read, so that a fault leaves the model as it was.
    Memory peaks at the model and what is touched of the largest file. A weight that holds NaN is
    warned of by its name.

    Args:
        sources: those of the whole model first, then those of parts.
        dtype: type of the weights in memory; None keeps the stored ones.

    Raises:
        CheckpointError: files are missing or damaged; weights are missing, unknown, there twice,
            of another shape, or no floating-point numbers; the first faults are listed.
    """
    shared = _shared(model)
    wanted = {name: value.shape for name, value in stored(model).items()}

    def ours(source: Source, name: str) -> str | None:
        new = source.renamed(name)
        return None if new in shared else new

    found: dict[str, _Stored] = {}
    broken: list[str] = []
    faults: dict[Path, list[str]] = {source.where: [] for source in sources}
    for source in sources:
        here: dict[str, _Stored] = {}
        for path in source.files:
            try:
                headers = _headers(path, partial(ours, source))
            except CheckpointError as error:
                broken.append(str(error))
                continue
            faults[source.where] += [
                f"{source.shown(name)} is in {_apart(stored.path, path)}"
                for name, stored in (found | here).items()
                if name in headers
            ]
            here |= headers
        faults[source.where] += _misfits(wanted, here, source.shown)
        found |= here
    if not broken:
        for name in wanted.keys() - found.keys():
            source = next(part for part in reversed(sources) if name.startswith(part.part))
            faults[source.where].append(f"{source.shown(name)} is missing")
    told = [line for where, lines in faults.items() for line in listed(where, lines)]
    if broken or told:
        raise CheckpointError("; ".join([*broken, *told]))
    for source in sources:
        for path in source.files:
            weights = _read(path, partial(ours, source), device, dtype)
            model.load_state_dict(weights, strict=False, assign=True)
    for name, first in shared.items():
        owner, _, last = name.rpartition(".")
        setattr(model.get_submodule(owner), last, model.get_parameter(first))
    model.to(device)  # constants, which no file holds


def _apart(one: Path, other: Path) -> str:
    """Two files, by their names where they lie in one folder."""
    if one.parent != other.parent:
        return f"{one} and in {other}"
    return f"{one.name} and in {other.name}"


@dataclass(frozen=True, slots=True)
class _Stored:
    """What a header says of one weight."""

    path: Path
    shape: torch.Size
    dtype: torch.dtype


def _headers(path: Path, ours: Callable[[str], str | None]) -> dict[str, _Stored]:
    headers: dict[str, _Stored] = {}
    with _opened(path, "cpu") as file:
        for theirs in file.keys():  # noqa: SIM118
            name = ours(theirs)
            if name is None:
                continue
            if name in headers:
                raise CheckpointError(f"{path}: holds {theirs} under two names; copy it again")
            piece = file.get_slice(theirs)
            dtype = FLOATS.get(piece.get_dtype()) or file.get_tensor(theirs).dtype
            headers[name] = _Stored(path, torch.Size(piece.get_shape()), dtype)
    return headers


def _read(
    path: Path,
    ours: Callable[[str], str | None],
    device: torch.device | str,
    dtype: torch.dtype | None,
) -> dict[str, Tensor]:
    def read(pair: tuple[str, str]) -> tuple[str, Tensor]:
        theirs, name = pair
        value = file.get_tensor(theirs)
        # The largest number is NaN where one of them is, and is found fast in every type.
        if value.numel() and value.max().isnan():
            warnings.warn(f"{path}: {theirs} holds NaN; copy it again", stacklevel=2)
        return name, _cast(value, dtype)

    with _opened(path, device) as file, ThreadPoolExecutor(_READERS) as readers:
        named = [(theirs, ours(theirs)) for theirs in file.keys()]  # noqa: SIM118
        return dict(readers.map(read, [(old, new) for old, new in named if new is not None]))


def assign(
    module: nn.Module, weights: dict[str, Tensor], where: Path, shown: Callable[[str], str] = str
) -> None:
    """Make `weights` the module's parameters, without a copy.

    Args:
        weights: under the module's own names.
        where: the file or folder, for messages.
        shown: from a name of ours to the one that the file knows, for messages.

    Raises:
        CheckpointError: weights are missing, unknown, of another shape, or no floating-point
            numbers; the first of them are listed.
    """
    wanted = {name: value.shape for name, value in module.state_dict().items()}
    found = {name: _Stored(where, value.shape, value.dtype) for name, value in weights.items()}
    faults = [f"{shown(name)} is missing" for name in wanted.keys() - found.keys()]
    faults += _misfits(wanted, found, shown)
    if faults:
        raise CheckpointError(*listed(where, faults))
    module.load_state_dict(weights, assign=True)


def _misfits(
    wanted: Mapping[str, torch.Size], found: Mapping[str, _Stored], shown: Callable[[str], str]
) -> list[str]:
    faults = []
    for name, stored in found.items():
        if name not in wanted:
            faults.append(f"{shown(name)} is unknown")
            continue
        if stored.shape != wanted[name]:
            faults.append(f"{shown(name)} is {tuple(stored.shape)}, not {tuple(wanted[name])}")
        if stored.dtype not in FLOATS.values():
            dtype = str(stored.dtype).removeprefix("torch.")
            faults.append(
                f"{shown(name)} holds {dtype}, not floating-point numbers of 16 bits or more"
            )
    return faults


def listed(where: Path, faults: Sequence[str]) -> list[str]:
    """Return the first faults as one message, or none."""
    if not faults:
        return []
    num_more = len(faults) - _MAX_SHOWN
    more = f"; and {num_more} more faults" if num_more > 0 else ""
    return [f"{where}: {'; '.join(sorted(faults)[:_MAX_SHOWN])}{more}"]
