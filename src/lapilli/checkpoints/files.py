"""What a model folder holds, read with every fault named: JSON, and weights in safetensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lapilli.errors import CheckpointError
from lapilli.model.llava import Llava

_HEAD = "language_model.lm_head.weight"
_EMBEDDINGS = "language_model.embed_tokens.weight"


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        CheckpointError: the file is missing, not JSON, or holds no object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: missing; copy the whole model folder") from error
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}; make it readable") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON ({error}); copy it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds no JSON object; copy it again")
    return content


def read_weights(
    path: Path, device: torch.device | str, dtype: torch.dtype | None
) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by their names in it.

    Args:
        dtype: None keeps the stored one.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: missing; copy it beside config.json")
    try:
        with safe_open(path, "pt", device=str(device)) as file:
            names = file.keys()
            return {name: file.get_tensor(name).to(dtype=dtype) for name in names}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); copy it again") from error


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
        CheckpointError: weights are missing, unknown or of another shape; all are listed.
    """
    wanted = module.state_dict()
    faults = [f"{shown(name)} is missing" for name in wanted.keys() - weights.keys()]
    faults += [f"{shown(name)} is unknown" for name in weights.keys() - wanted.keys()]
    faults += [
        f"{shown(name)} is {tuple(weights[name].shape)}, not {tuple(wanted[name].shape)}"
        for name in wanted.keys() & weights.keys()
        if wanted[name].shape != weights[name].shape
    ]
    if faults:
        raise CheckpointError(f"{where}: {'; '.join(sorted(faults))}")
    module.load_state_dict(weights, assign=True)
