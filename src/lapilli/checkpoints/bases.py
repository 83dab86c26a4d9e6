"""Folders that hold a part of a model, or a change of one, and name the model that it belongs to:
adapters, and projectors alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from lapilli.checkpoints import hub, lora, original
from lapilli.checkpoints.loading import Wanted, find, find_here, layout_of
from lapilli.checkpoints.lora_settings import is_adapter, read_config
from lapilli.checkpoints.original_spec import is_original
from lapilli.checkpoints.texts import read_json
from lapilli.errors import CheckpointError
from lapilli.model.llava import Llava
from lapilli.model.spec import LlavaSpec
from lapilli.processor.processor import Processor


def load(folder: Path, wanted: Wanted) -> tuple[Llava, Processor]:
    """Read a model out of its base and what the folder holds.

    Raises:
        CheckpointError: the base is not on this disk, a file is missing or damaged, or they do not
            fit each other.
        ConfigError: an adapter is to stay apart, and PEFT is not installed.
    """
    base = find_base(folder, wanted.base)
    spec = _spec(folder, base, wanted.vision_tower)
    adapter = lora.read(folder, read_config(folder), spec) if is_adapter(folder) else None
    if _is_language_model(base):
        model, processor = original.load(
            folder,
            device=wanted.device,
            dtype=wanted.dtype,
            vision_tower=wanted.vision_tower,
            language_model=base,
        )
    else:
        model, processor = layout_of(base).load(base, replace(wanted, base=None))
    if adapter is not None:
        lora.put_on(model, adapter, is_kept=wanted.keeps_adapter)
    return model.eval(), processor


def read_spec(folder: Path) -> LlavaSpec:
    """Read the architecture alone, with the base that the folder names.

    Raises:
        CheckpointError: as in `load`.
    """
    return _spec(folder, find_base(folder), None)


def find_base(folder: Path, named: str | Path | None = None, *, allow_pickle: bool = False) -> Path:
    """Return the folder of the model that another folder belongs to.

    Args:
        named: what it is called; None for what the folder says, which is not downloaded.
        allow_pickle: download pickled weights, too, which `load` does not read.

    Raises:
        CheckpointError: it is not on this disk, or belongs to another itself.
    """
    base = _own_base(folder) if named is None else _asked_base(named, allow_pickle)
    if layout_of(base).has_base:
        raise CheckpointError(f"{base}: no whole model, so it is no base; convert it first")
    is_language_model = _is_language_model(base)
    if is_language_model and not (folder / "config.json").exists():
        raise CheckpointError(
            f"{base}: a language model, and {folder} does not say which vision tower it sees with; "
            "name a LLaVA with --base"
        )
    if not is_language_model and not is_adapter(folder):
        raise CheckpointError(f"{base}: no language model, which a projector takes; name one")
    return base


def _own_base(folder: Path) -> Path:
    if is_adapter(folder):
        name = read_config(folder).base
    else:
        name = _text(read_json(folder / "config.json").get("_name_or_path"))
    if not name:
        raise CheckpointError(f"{folder}: its base is not named; name it with --base")
    try:
        found = find_here(name) or find_here(folder / name) or _cached(name)
    except OSError:  # too long for a name
        found = None
    if found is None:
        raise CheckpointError(
            f"{folder}: its base {name} is not on this disk; name a folder with --base, or an id "
            "on the hub, which is then downloaded"
        )
    return found


def _asked_base(name: str | Path, allow_pickle: bool) -> Path:
    here = find_here(name) or (_cached(name) if isinstance(name, str) else None)
    return here or find(name, allow_pickle=allow_pickle)


def _cached(name: str) -> Path | None:
    repository = hub.hub_name(name)
    return None if repository is None else hub.cached_base(repository)


def _spec(folder: Path, base: Path, vision_tower: str | Path | None) -> LlavaSpec:
    if _is_language_model(base):
        return original.read_spec(folder, vision_tower, base)
    return layout_of(base).read_spec(base)


def _is_language_model(folder: Path) -> bool:
    """Whether a folder holds no LLaVA but what reads and writes words alone."""
    config = read_json(folder / "config.json")
    return not (config.get("format") or is_original(config) or "vision_config" in config)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
