"""A model by its name, its folder or its id on the hub, whatever the format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lapilli.checkpoints import hub
from lapilli.checkpoints.lora_settings import is_adapter
from lapilli.checkpoints.original_spec import is_original
from lapilli.checkpoints.published import PUBLISHED
from lapilli.checkpoints.shards import is_projector
from lapilli.checkpoints.texts import read_json
from lapilli.errors import CheckpointError, ConfigError
from lapilli.runtime import resolve_device, resolve_dtype
from lapilli.tiling import Parity

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
        vision_tower: a tower's folder or id, for a layout that leaves it elsewhere.
        base: a model's folder or id, for a layout that changes another model.
        keeps_adapter: an adapter stays apart from the weights.
    """

    device: torch.device
    dtype: torch.dtype | None
    vision_tower: str | Path | None = None
    base: str | Path | None = None
    keeps_adapter: bool = False


@dataclass(frozen=True)
class Layout:
    """A way to write a model folder; what reads it is imported when it is needed.

    Attributes:
        is_of: whether a folder is written so, by itself and what its `config.json` holds.
        read_spec: reads the architecture alone.
        load: reads the model, in evaluation mode, and what prepares its inputs.
        parity: whose way its models go where `transformers` and the original code differ; None
            where the folder says so.
        leaves_tower: its vision tower may lie elsewhere.
        has_base: it holds a part, or a change, of a model that lies elsewhere.
    """

    name: str
    is_of: Callable[[Path, Mapping[str, Any]], bool]
    read_spec: Callable[[Path], LlavaSpec]
    load: Callable[[Path, Wanted], tuple[Llava, Processor]]
    parity: Parity | None = None
    leaves_tower: bool = False
    has_base: bool = False


def _native_spec(folder: Path) -> LlavaSpec:
    from lapilli.checkpoints import native

    return native.read_spec(folder)


def _native(folder: Path, wanted: Wanted) -> tuple[Llava, Processor]:
    from lapilli.checkpoints import native

    return native.load(folder, device=wanted.device, dtype=wanted.dtype)


def _original_spec(folder: Path) -> LlavaSpec:
    from lapilli.checkpoints import original

    return original.read_spec(folder)


def _original(folder: Path, wanted: Wanted) -> tuple[Llava, Processor]:
    from lapilli.checkpoints import original

    return original.load(
        folder, device=wanted.device, dtype=wanted.dtype, vision_tower=wanted.vision_tower
    )


def _based_spec(folder: Path) -> LlavaSpec:
    from lapilli.checkpoints import bases

    return bases.read_spec(folder)


def _based(folder: Path, wanted: Wanted) -> tuple[Llava, Processor]:
    from lapilli.checkpoints import bases

    return bases.load(folder, wanted)


def _hf_spec(folder: Path) -> LlavaSpec:
    from lapilli.checkpoints import hf

    return hf.read_spec(folder)


def _hf(folder: Path, wanted: Wanted) -> tuple[Llava, Processor]:
    from lapilli.checkpoints import hf

    return hf.load(folder, device=wanted.device, dtype=wanted.dtype)


LAYOUTS = (
    Layout(
        "adapter",
        lambda folder, config: is_adapter(folder),
        _based_spec,
        _based,
        leaves_tower=True,
        has_base=True,
    ),
    Layout(
        "projector",
        lambda folder, config: is_projector(folder) and is_original(config),
        _based_spec,
        _based,
        parity="original",
        leaves_tower=True,
        has_base=True,
    ),
    Layout(
        "native", lambda folder, config: config.get("format") == "lapilli", _native_spec, _native
    ),
    Layout(
        "original",
        lambda folder, config: is_original(config),
        _original_spec,
        _original,
        parity="original",
        leaves_tower=True,
    ),
    Layout("hf", lambda folder, config: True, _hf_spec, _hf, parity="hf"),
)
"""The first that fits counts; Hugging Face's says best what is wrong with all others."""


def layout_of(folder: Path) -> Layout:
    """Return how a model folder is written, by what its `config.json` holds.

    Raises:
        CheckpointError: its configuration is missing or damaged.
    """
    path = folder / "config.json"
    config = {} if is_adapter(folder) and not path.exists() else read_json(path)
    return next(layout for layout in LAYOUTS if layout.is_of(folder, config))


def load(
    name: str | Path | None = None,
    *,
    device: str = "auto",
    dtype: str | torch.dtype | None = None,
    quantize: str | None = None,
    parity: Parity | None = None,
    vision_tower: str | Path | None = None,
    base: str | Path | None = None,
    adapter: Literal["merge", "keep"] = "merge",
) -> tuple[Llava, Processor]:
    """Return a model in evaluation mode, and what prepares its inputs.

    Args:
        name: a known name, a folder in Lapilli's own layout, Hugging Face's or the original code's,
            of an adapter or of a projector; or an id on the hub (`org/name`, `org/name@revision`),
            which is downloaded unless it is in the hub's cache; None for the embedded model.
        device: "auto" takes a GPU where there is one.
        dtype: None is bfloat16 on a GPU and float32 on a CPU, where small models decode fastest
            in it.
        quantize: "int8" or "int4" keeps the weights of the language model's layers in 8 or 4 bits;
            such a model cannot be trained or written.
        parity: whose way is taken where they differ: "hf" for `transformers`, "original" for the
            code that LLaVA was published with; None for that of the folder's layout.
        vision_tower: the folder or id of the vision tower of a model in the original's layout that
            has it elsewhere.
        base: the model that an adapter or a projector belongs to, named as `name` is; None for the
            one that its folder names, which is not downloaded.
        adapter: "merge" adds it to the weights; "keep" leaves it apart, to learn on, which takes
            PEFT.

    Raises:
        CheckpointError: there is no such model, it is incomplete or damaged, or it cannot be
            downloaded.
        ConfigError: there is no such device, dtype, parity, way with an adapter or kind of smaller
            weights; the model does not suit that kind; or PEFT is needed and not installed.
    """
    if parity not in (None, "hf", "original"):
        raise ConfigError(f"parity {parity!r} is unknown; give hf or original")
    if adapter not in ("merge", "keep"):
        raise ConfigError(f"adapter {adapter!r} is unknown; give merge or keep")
    place = resolve_device(device)
    number = resolve_dtype(dtype, place)
    keeps = adapter == "keep"
    if quantize is None:
        return _load(find(name), Wanted(place, number, vision_tower, base, keeps), parity)
    from lapilli.model.decoder import Decoder
    from lapilli.model.quantize import check_bits
    from lapilli.model.quantize import quantize as make_smaller

    bits = check_bits(quantize)  # before gigabytes are read
    if keeps:
        raise ConfigError(f"{quantize}: an adapter that stays apart needs whole weights; merge it")
    # As stored, weights stay in their files until they are looked at, one after the other.
    as_stored = Wanted(resolve_device("cpu"), None, vision_tower, base)
    model, processor = _load(find(name), as_stored, parity)
    decoder = model.language_model
    if not isinstance(decoder, Decoder):
        raise ConfigError(f"{quantize}: for decoders of the Llama family alone; leave it out")
    make_smaller(decoder, bits, place)
    return model.to(place, number), processor


def load_stored(
    name: str | Path | None = None,
    *,
    vision_tower: str | Path | None = None,
    base: str | Path | None = None,
) -> tuple[Llava, Processor]:
    """Return a model on the CPU with its weights in the type that is stored, to be written again.

    Args and Raises: as in `load`.
    """
    return _load(find(name), Wanted(resolve_device("cpu"), None, vision_tower, base), None)


def _load(folder: Path, wanted: Wanted, parity: Parity | None) -> tuple[Llava, Processor]:
    layout = layout_of(folder)
    if wanted.vision_tower is not None and not layout.leaves_tower:
        raise CheckpointError(f"{folder}: holds its vision tower; leave out vision_tower")
    if wanted.base is not None and not layout.has_base:
        raise CheckpointError(f"{folder}: a whole model, which takes no base; leave it out")
    loaded = layout.load(folder, wanted)
    if parity is None or parity == layout.parity:
        return loaded
    from lapilli.checkpoints.parity import follow

    return follow(*loaded, parity)


def read_spec(folder: Path) -> LlavaSpec:
    """Return the architecture of a model folder, whatever the format; no weight is read.

    Raises:
        CheckpointError: its configuration is missing, damaged or not supported.
    """
    return layout_of(folder).read_spec(folder)


def find(name: str | Path | None, *, allow_pickle: bool = False) -> Path:
    """Return the folder of a model, downloaded if its name is one of the hub's.

    A folder here goes before a repository of the same name. A `Path` names folders alone.

    Args:
        allow_pickle: download pickled weights, too, which `load` does not read.

    Raises:
        CheckpointError: neither a known name nor a folder nor an id, the package came without
            weights, or the download failed.
    """
    folder = find_here(name)
    if folder is not None:
        return folder
    wanted = hub.hub_name(str(name)) if isinstance(name, str) else None
    if wanted is not None:
        return hub.find(wanted, allow_pickle=allow_pickle)
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
