"""The models known by name: where they come from, what they take and what they can do."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from lapilli.checkpoints.loading import EMBEDDED, embedded_folder
from lapilli.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Entry:
    """One model.

    Attributes:
        name: what `--model` takes.
        parameters: how many numbers the weights hold; None where they are not here to be counted.
        size_bytes: on disk.
        memory_bytes: of the weights alone when they run on a CPU, in fp32.
        license: an SPDX name.
        source: where the weights come from.
        is_here: whether they are on this disk.
        can: the verbs that work with it.
    """

    name: str
    parameters: int | None
    size_bytes: int | None
    memory_bytes: int | None
    license: str
    source: str
    is_here: bool
    can: tuple[str, ...]


def entries() -> list[Entry]:
    """Return all models known by name.

    Raises:
        CheckpointError: weights on this disk are damaged.
    """
    weights = embedded_folder() / "model.safetensors"
    is_here = weights.exists()
    count = _num_parameters(weights) if is_here else None
    return [
        Entry(
            name=EMBEDDED,
            parameters=count,
            size_bytes=weights.stat().st_size if is_here else None,
            memory_bytes=4 * count if count is not None else None,
            license="Apache-2.0",
            source="inside the package",
            is_here=is_here,
            can=("ask", "chat", "describe", "train", "eval", "convert"),
        )
    ]


def _num_parameters(weights: Path) -> int:
    try:
        with safe_open(weights, "np") as file:  # reads the header alone, and does without torch
            names = file.keys()
            return sum(math.prod(file.get_slice(name).get_shape()) for name in names)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{weights}: damaged ({error}); reinstall lapilli") from error
