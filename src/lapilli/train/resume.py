"""Checkpoints of a run in progress: whole or absent, never half.

A checkpoint is a folder that is written under another name and renamed when it is complete.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from lapilli.errors import CheckpointError


def save(folder: Path, step: int, module: nn.Module, optimizers: list[Optimizer]) -> None:
    """Write `folder/step-N` and remove the one before it.

    Raises:
        CheckpointError: the disk is full or not writable; the earlier checkpoint is kept.
    """
    final = folder / f"step-{step:07d}"
    partial = folder / f"{final.name}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        weights = {k: v.contiguous() for k, v in _learning(module).items()}
        save_file(weights, partial / "weights.safetensors")
        tensors, numbers = _flatten([optimizer.state_dict() for optimizer in optimizers])
        save_file(tensors, partial / "optimizers.safetensors")
        (partial / "state.json").write_text(json.dumps({"step": step, "optimizers": numbers}))
        partial.rename(final)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(
            f"{final}: cannot be written ({reason}); the earlier checkpoint is "
            "kept. Free some space and run the same command again."
        ) from error
    for old in folder.glob("step-*"):
        if old != final:
            shutil.rmtree(old)


def load(folder: Path, module: nn.Module, optimizers: list[Optimizer]) -> int:
    """Load the newest whole checkpoint of `folder`; return its step, 0 where there is none.

    Raises:
        CheckpointError: it is damaged, or belongs to a recipe that trains something else.
    """
    found = sorted(p for p in folder.glob("step-*") if (p / "state.json").exists())
    found = [path for path in found if path.suffix != ".partial"]
    if not found:
        return 0
    try:
        state = json.loads((found[-1] / "state.json").read_text())
        weights = load_file(found[-1] / "weights.safetensors")
        tensors = load_file(found[-1] / "optimizers.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{found[-1]}: damaged ({error}); remove it to begin anew") from error
    own = _learning(module)
    other = f"{found[-1]}: holds other weights than this recipe trains; use another --out folder"
    if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in weights.items()}:
        raise CheckpointError(other)
    try:
        for optimizer, numbers in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(_unflatten(numbers, tensors))
    except ValueError as error:
        raise CheckpointError(other) from error
    with torch.no_grad():
        for name, value in weights.items():
            own[name].copy_(value)
    return int(state["step"])


def _learning(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.data for name, p in module.named_parameters() if p.requires_grad}


def _flatten(states: list[dict[str, Any]]) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Part optimizer states into tensors, by number, and what JSON can hold."""
    tensors: dict[str, Tensor] = {}
    numbers = []
    for state in states:
        slots: dict[str, dict[str, str]] = {}
        for index, values in state["state"].items():
            slots[str(index)] = {}
            for key, value in values.items():
                name = f"tensor-{len(tensors)}"
                tensors[name] = value.contiguous()
                slots[str(index)][key] = name
        numbers.append({"state": slots, "param_groups": state["param_groups"]})
    return tensors, numbers


def _unflatten(numbers: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    slots = {
        int(index): {key: tensors[name] for key, name in values.items()}
        for index, values in numbers["state"].items()
    }
    return {"state": slots, "param_groups": numbers["param_groups"]}
