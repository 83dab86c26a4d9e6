"""The names that versions of `transformers` give the weights of a LLaVA."""

from __future__ import annotations

from torch import Tensor


def names_in_memory_of_5(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return weights


def names_in_memory_of_4(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    tower = "model.vision_tower."
    return {name.replace(tower, f"{tower}vision_model."): weights[name] for name in weights}


def names_on_disk(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of version 4's files."""
    renamed = {}
    for name, value in names_in_memory_of_4(weights).items():
        name = name.replace("model.language_model.", "language_model.model.")
        name = f"language_model.{name}" if name.startswith("lm_head.") else name
        renamed[name.removeprefix("model.")] = value
    return renamed
