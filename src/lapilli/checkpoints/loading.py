"""A model by its name, its folder or its id on the hub, whatever the format."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from lapilli.checkpoints import hub
from lapilli.checkpoints.published import PUBLISHED
from lapilli.checkpoints.texts import read_json
from lapilli.errors import CheckpointError
from lapilli.runtime import resolve_device, resolve_dtype

if TYPE_CHECKING:
    import torch

    from lapilli.model.llava import Llava
    from lapilli.model.spec import LlavaSpec
    from lapilli.processor.processor import Processor

EMBEDDED = "lapilli-tiny"
"""The model inside the package."""


def load(
    name: str | Path | None = None,
    *,
    device: str = "auto",
    dtype: str | torch.dtype | None = None,
    quantize: str | None = None,
) -> tuple[Llava, Processor]:
    """Return a model in evaluation mode, and what prepares its inputs.

    Args:
        name: a known name, a folder in Lapilli's own or the Hugging Face layout, or an id on the
            hub (`org/name`, `org/name@revision`), which is downloaded unless it is in the hub's
            cache; None for the embedded model.
        device: "auto" takes a GPU where there is one.
        dtype: None is bfloat16 on a GPU and float32 on a CPU, where small models decode fastest
            in it.
        quantize: "int8" or "int4" keeps the weights of the language model's layers in 8 or 4 bits;
            such a model cannot be trained or written.

    Raises:
        CheckpointError: there is no such model, it is incomplete or damaged, or it cannot be
            downloaded.
        ConfigError: there is no such device, dtype or kind of smaller weights, or the model's
            widths do not suit that kind.
    """
    place = resolve_device(device)
    number = resolve_dtype(dtype, place)
    if quantize is None:
        return _read(find(name), place, number)
    from lapilli.model.quantize import check_bits
    from lapilli.model.quantize import quantize as make_smaller

    bits = check_bits(quantize)  # before gigabytes are read
    # As stored, weights stay in their files until they are looked at, one after the other.
    model, processor = _read(find(name), resolve_device("cpu"), None)
    make_smaller(model.language_model, bits, place)
    return model.to(place, number), processor


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


def read_spec(folder: Path) -> LlavaSpec:
    """Return the architecture of a model folder, whatever the format; no weight is read.

    Raises:
        CheckpointError: its configuration is missing, damaged or not supported.
    """
    path = folder / "config.json"
    config = read_json(path)
    if config.get("format") == "lapilli":
        from lapilli.checkpoints import native

        return native.read_spec(folder)
    from lapilli.checkpoints.hf_spec import spec_from_hf

    return spec_from_hf(config, str(path))


def find(name: str | Path | None) -> Path:
    """Return the folder of a model, downloaded if its name is one of the hub's.

    A folder here goes before a repository of the same name. A `Path` names folders alone.

    Raises:
        CheckpointError: neither a known name nor a folder nor an id, the package came without
            weights, or the download failed.
    """
    folder = find_here(name)
    if folder is not None:
        return folder
    wanted = hub.hub_name(str(name)) if isinstance(name, str) else None
    if wanted is not None:
        return hub.find(wanted)
    raise CheckpointError(
        f"{name}: neither a model folder nor a known name; known: {', '.join(known_names())}. "
        "Nothing is downloaded unless asked for; name a folder that is there, or an id on the hub "
        "such as llava-hf/llava-1.5-7b-hf"
    )


def find_here(name: str | Path | None) -> Path | None:
    """Return the folder of a model that needs no hub; None where there is none.

    Raises:
        CheckpointError: the package came without weights.
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
    return folder if folder.is_dir() else None


def known_names() -> tuple[str, ...]:
    """Return the names that stand for a model without its folder or id."""
    return (EMBEDDED, *PUBLISHED)


def embedded_folder() -> Path:
    """Return where the embedded model lies."""
    return Path(str(files("lapilli"))) / "assets" / "tiny"
