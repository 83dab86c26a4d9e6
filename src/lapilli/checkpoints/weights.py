"""Weights in safetensors: written, read with every fault named, and given to a model."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lapilli.errors import CheckpointError
from lapilli.model.llava import Llava

_HEAD = "language_model.lm_head.weight"
_EMBEDDINGS = "language_model.embed_tokens.weight"

_MAX_SHOWN = 8
"""Faults that a message lists; a folder of another architecture has hundreds."""


def stored(model: Llava) -> dict[str, Tensor]:
    """Return the weights that a folder holds: all, save a head that is the embeddings."""
    weights = dict(model.state_dict())
    if model.spec.decoder.is_tied:
        del weights[_HEAD]
    return weights


def write_weights(
    path: Path, weights: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write tensors, by their names, beside the folder's `config.json`."""
    save_file({name: value.contiguous() for name, value in weights.items()}, path, metadata)
    # The library lets its owner alone read the file; a model folder is shared as a whole.
    shutil.copymode(path.with_name("config.json"), path)


def read_weights(
    path: Path, device: torch.device | str, dtype: torch.dtype | None
) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by their names in it.

    Args:
        dtype: of floating-point numbers; None keeps the stored one.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: missing; copy it beside config.json")
    try:
        with safe_open(path, "pt", device=str(device)) as file:
            names = file.keys()
            return {name: _cast(file.get_tensor(name), dtype) for name in names}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); copy it again") from error


def _cast(value: Tensor, dtype: torch.dtype | None) -> Tensor:
    return value.to(dtype=dtype) if value.is_floating_point() else value


def fill(
    model: Llava, weights: dict[str, Tensor], where: Path, shown: Callable[[str], str] = str
) -> None:
    """Make `weights` the model's; a tied head becomes the embeddings, whatever else was stored.

    Args: as in `assign`.

    Raises:
        CheckpointError: as in `assign`.
    """
    is_tied = model.spec.decoder.is_tied
    if is_tied and _EMBEDDINGS in weights:
        weights = weights | {_HEAD: weights[_EMBEDDINGS]}
    assign(model, weights, where, shown)
    if is_tied:
        model.language_model.lm_head.weight = model.language_model.embed_tokens.weight


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
    wanted = module.state_dict()
    faults = [f"{shown(name)} is missing" for name in wanted.keys() - weights.keys()]
    faults += [f"{shown(name)} is unknown" for name in weights.keys() - wanted.keys()]
    faults += [
        f"{shown(name)} is {tuple(weights[name].shape)}, not {tuple(wanted[name].shape)}"
        for name in wanted.keys() & weights.keys()
        if wanted[name].shape != weights[name].shape
    ]
    faults += [
        f"{shown(name)} holds {str(value.dtype).removeprefix('torch.')}, not floating-point numbers"
        for name, value in weights.items()
        if name in wanted and not value.is_floating_point()
    ]
    if faults:
        num_more = len(faults) - _MAX_SHOWN
        more = f"; and {num_more} more faults" if num_more > 0 else ""
        raise CheckpointError(f"{where}: {'; '.join(sorted(faults)[:_MAX_SHOWN])}{more}")
    module.load_state_dict(weights, assign=True)
