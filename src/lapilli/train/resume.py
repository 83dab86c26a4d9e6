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
from lapilli.runtime import rename_durably


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
        rename_durably(partial, final)
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

    Rates and weight decay stay those of `optimizers`, so that a changed recipe counts.

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
        saved = [_unflatten(numbers, tensors) for numbers in state["optimizers"]]
        step = int(state["step"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{found[-1]}: damaged ({error}); remove it to begin anew") from error
    own = _learning(module)
    fresh = [optimizer.state_dict() for optimizer in optimizers]
    if _shapes(weights) != _shapes(own) or _members(saved) != _members(fresh):
        raise CheckpointError(
            f"{found[-1]}: holds other weights than this recipe trains; use another --out folder"
        )
    for optimizer, old, new in zip(optimizers, saved, fresh, strict=True):
        optimizer.load_state_dict({"state": old["state"], "param_groups": new["param_groups"]})
    with torch.no_grad():
        for name, value in weights.items():
            own[name].copy_(value)
    return step


def _learning(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.data for name, p in module.named_parameters() if p.requires_grad}


def _shapes(weights: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in weights.items()}


def _members(states: list[dict[str, Any]]) -> list[list[list[int]]]:
    """Which parameters, by number, are in each group of each optimizer."""
    return [[group["params"] for group in state["param_groups"]] for state in states]


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
