"""A model by its name or its folder, whatever the format."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from lapilli.checkpoints.texts import read_json
from lapilli.errors import CheckpointError
from lapilli.runtime import resolve_device, resolve_dtype

if TYPE_CHECKING:
    import torch

    from lapilli.model.llava import Llava
    from lapilli.processor.processor import Processor

EMBEDDED = "lapilli-tiny"
"""The model inside the package."""


def load(
    name: str | Path | None = None,
    *,
    device: str = "auto",
    dtype: str | torch.dtype | None = None,
) -> tuple[Llava, Processor]:
    """Return a model in evaluation mode, and what prepares its inputs.

    Args:
        name: a known name, or a folder in Lapilli's own or the Hugging Face layout; None for the
            embedded model. Nothing is downloaded.
        device: "auto" takes a GPU where there is one.
        dtype: None is bfloat16 on a GPU and float32 on a CPU, where small models decode fastest
            in it.

    Raises:
        CheckpointError: there is no such model, or it is incomplete or damaged.
        ConfigError: there is no such device or dtype.
    """
    place = resolve_device(device)
    return _read(find(name), place, resolve_dtype(dtype, place))


def load_stored(name: str | Path | None = None) -> tuple[Llava, Processor]:
    """Return a model on the CPU with its weights in the type that is stored, to be written again.

    Args and Raises: as in `load`.
    """
    return _read(find(name), resolve_device("cpu"), None)


def _read(folder: Path, device: torch.device, dtype: torch.dtype | None) -> tuple[Llava, Processor]:
    if read_json(folder / "config.json").get("format") == "lapilli":
        from lapilli.checkpoints import native

        return native.load(folder, device=device, dtype=dtype)
    from lapilli.checkpoints import hf

    return hf.load(folder, device=device, dtype=dtype)


def find(name: str | Path | None) -> Path:
    """Return the folder of a model.

    Raises:
        CheckpointError: neither a known name nor a folder, or the package came without weights.
    """
    if name is None or str(name) == EMBEDDED:
        folder = embedded_folder()
        if not (folder / "model.safetensors").exists():
            raise CheckpointError(
                f"{EMBEDDED}: this installation has no weights in {folder}; reinstall lapilli, or "
                "name a model folder"
            )
        return folder
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    raise CheckpointError(
        f"{name}: neither a model folder nor a known name; known: {EMBEDDED}. Nothing is "
        "downloaded unless asked for; name a folder that is there"
    )


def embedded_folder() -> Path:
    """Return where the embedded model lies."""
    return Path(str(files("lapilli"))) / "assets" / "tiny"
