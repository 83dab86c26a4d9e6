"""A model by its name, its folder or its id on the hub, whatever the format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lapilli.checkpoints import hub
from lapilli.checkpoints.lora_settings import is_adapter, read_config
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


@dataclass(frozen=True)
class Wanted:
    """How a model is to be loaded.

    Attributes:
        device: where the weights go.
        dtype: of the weights; None keeps the stored ones.
    """

    device: torch.device
    dtype: torch.dtype | None


@dataclass(frozen=True)
class Layout:
    """A way to write a model folder; what reads it is imported when it is needed.

    Attributes:
        is_of: whether a folder is written so, by itself and what its `config.json` holds.
        read_spec: reads the architecture alone.
        load: reads the model, in evaluation mode, and what prepares its inputs.
    """

    name: str
    is_of: Callable[[Path, Mapping[str, Any]], bool]
    read_spec: Callable[[Path], LlavaSpec]
    load: Callable[[Path, Wanted], tuple[Llava, Processor]]


def _native_spec(folder: Path) -> LlavaSpec:
    from lapilli.checkpoints import native

    return native.read_spec(folder)


def _native(folder: Path, wanted: Wanted) -> tuple[Llava, Processor]:
    from lapilli.checkpoints import native

    return native.load(folder, device=wanted.device, dtype=wanted.dtype)


def _hf_spec(folder: Path) -> LlavaSpec:
    from lapilli.checkpoints import hf

    return hf.read_spec(folder)


def _hf(folder: Path, wanted: Wanted) -> tuple[Llava, Processor]:
    from lapilli.checkpoints import hf

    return hf.load(folder, device=wanted.device, dtype=wanted.dtype)


LAYOUTS = (
    Layout(
        "native", lambda folder, config: config.get("format") == "lapilli", _native_spec, _native
    ),
    Layout("hf", lambda folder, config: True, _hf_spec, _hf),
)
"""The first that fits counts; Hugging Face's says best what is wrong with all others."""


def layout_of(folder: Path) -> Layout:
    """Return how a model folder is written, by what its `config.json` holds.

    Raises:
        CheckpointError: its configuration is missing or damaged.
    """
    config = read_json(folder / "config.json")
    return next(layout for layout in LAYOUTS if layout.is_of(folder, config))


def load(
    name: str | Path | None = None,
    *,
    device: str = "auto",
    dtype: str | torch.dtype | None = None,
    base: str | Path | None = None,
    adapter: Literal["merge", "keep"] = "merge",
) -> tuple[Llava, Processor]:
    """Return a model in evaluation mode, and what prepares its inputs.

    Args:
        name: a known name, a folder in Lapilli's own or the Hugging Face layout, or of an
            adapter; or an id on the hub (`org/name`, `org/name@revision`), which is downloaded
            unless it is in the hub's cache; None for the embedded model.
        device: "auto" takes a GPU where there is one.
        dtype: None is bfloat16 on a GPU and float32 on a CPU, where small models decode fastest
            in it.
        base: the model that an adapter is put on, named as `name` is; None for the one that the
            adapter's folder names, which is not downloaded.
        adapter: "merge" adds it to the weights; "keep" leaves it apart, to learn on, which takes
            PEFT.

    Raises:
        CheckpointError: there is no such model, it is incomplete or damaged, or it cannot be
            downloaded.
        ConfigError: there is no such device or dtype, or PEFT is needed and not installed.
    """
    place = resolve_device(device)
    wanted = Wanted(place, resolve_dtype(dtype, place))
    return _load(find(name), wanted, base, is_kept=adapter == "keep")


def load_stored(
    name: str | Path | None = None, *, base: str | Path | None = None
) -> tuple[Llava, Processor]:
    """Return a model on the CPU with its weights in the type that is stored, to be written again.

    Args and Raises: as in `load`.
    """
    return _load(find(name), Wanted(resolve_device("cpu"), None), base)


def _load(
    folder: Path, wanted: Wanted, base: str | Path | None = None, *, is_kept: bool = False
) -> tuple[Llava, Processor]:
    below = find_base(folder, base)
    if below is None:
        return layout_of(folder).load(folder, wanted)
    from lapilli.checkpoints import lora

    read = lora.read(folder, read_config(folder), read_spec(below))
    model, processor = layout_of(below).load(below, wanted)
    lora.put_on(model, read, is_kept=is_kept)
    return model.eval(), processor


def find_base(folder: Path, base: str | Path | None = None) -> Path | None:
    """Return the folder of the model that an adapter is put on; None where there is no adapter.

    Args:
        folder: of the adapter.
        base: its name; None for the one that the adapter's folder names, which is not downloaded.

    Raises:
        CheckpointError: it is not on this disk, or is an adapter itself; or there is no adapter,
            and a base.
    """
    if not is_adapter(folder):
        if base is not None:
            raise CheckpointError(f"{folder}: no adapter, so it takes no base; leave it out")
        return None
    found: Path | None
    if base is not None:
        found = find(base)
    else:
        named = read_config(folder).base
        if not named:
            raise CheckpointError(f"{folder}: its base is not named; name it with --base")
        found = _find_without_download(named, folder)
        if found is None:
            raise CheckpointError(
                f"{folder}: its base {named} is not on this disk; name a folder with --base, or "
                "an id on the hub, which is then downloaded"
            )
    if is_adapter(found):
        raise CheckpointError(f"{found}: an adapter is no base of another; convert it to a model")
    return found


def _find_without_download(name: str, beside: Path) -> Path | None:
    try:
        for folder in (find_here(name), find_here(beside / name)):
            if folder is not None:
                return folder
    except OSError:  # too long for a name
        return None
    wanted = hub.hub_name(name)
    return None if wanted is None else hub.cached(wanted)


def read_spec(folder: Path) -> LlavaSpec:
    """Return the architecture of a model folder, whatever the format; no weight is read.

    That of an adapter is its base's.

    Raises:
        CheckpointError: its configuration is missing, damaged or not supported.
    """
    folder = find_base(folder) or folder
    return layout_of(folder).read_spec(folder)


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
