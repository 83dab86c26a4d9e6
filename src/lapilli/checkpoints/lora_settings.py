"""`adapter_config.json`: how PEFT says what an adapter is, judged as it is read."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lapilli.checkpoints.sections import Section
from lapilli.checkpoints.texts import read_json
from lapilli.errors import CheckpointError

CONFIG = "adapter_config.json"

_DEFAULTS = {"r": 8, "lora_alpha": 8, "bias": "none", "use_rslora": False}
_READ = {
    "peft_type", "base_model_name_or_path", "revision", "bias", "r", "lora_alpha", "use_rslora",
    "rank_pattern", "alpha_pattern", "init_lora_weights",
}  # fmt: skip
_WITHOUT_EFFECT = {
    # what was chosen is seen from the weights' names
    "target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern",
    # of training, and of running
    "lora_dropout", "inference_mode", "runtime_config", "eva_config",
    # of the program that wrote it
    "task_type", "auto_mapping", "peft_version",
    # of methods that other keys switch on
    "megatron_core", "qalora_group_size",
}  # fmt: skip
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""How an adapter began to learn; the other ways changed the weights beside it as well."""

_MAX_CHARACTERS, _MAX_REPEATS = 256, 3
"""Of a pattern of layer names: beyond them a search may take forever."""


@dataclass(frozen=True)
class AdapterConfig:
    """What is said of an adapter.

    Attributes:
        base: the model that it was trained on; empty where nothing is said.
        rank, alpha: of most layers.
        ranks, alphas: of layers whose names fit a pattern; the first that fits counts.
        is_rank_stabilized: products count alpha / sqrt(rank) in place of alpha / rank.
    """

    base: str
    rank: int
    alpha: float
    ranks: Mapping[re.Pattern[str], int]
    alphas: Mapping[re.Pattern[str], float]
    is_rank_stabilized: bool

    def rank_of(self, layer: str) -> int:
        """Return the rank for a layer, by its name in the model that the adapter was trained on."""
        return _first(self.ranks, layer, self.rank)

    def alpha_of(self, layer: str) -> float:
        """Return the alpha for a layer, by its name as in `rank_of`."""
        return _first(self.alphas, layer, self.alpha)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, and no whole model."""
    return (folder / CONFIG).exists()


def read_config(folder: Path) -> AdapterConfig:
    """Read what is said of an adapter.

    Raises:
        CheckpointError: the file is missing or damaged, or asks for other arithmetic than LoRA's.
    """
    path = folder / CONFIG
    values = read_json(path)
    about = Section(values, _DEFAULTS, str(path))
    about.expect("peft_type", "LORA")
    about.expect("bias", "none")
    about.expect("use_rslora", True, False)
    about.expect("init_lora_weights", *_PLAIN_STARTS)
    for key in sorted(values.keys() - _READ - _WITHOUT_EFFECT):
        if values[key]:
            raise CheckpointError(
                f"{path}: {key} is {values[key]!r}, which is not supported; merge the adapter "
                "with PEFT, and load the merged model"
            )
    base, revision = values.get("base_model_name_or_path") or "", values.get("revision")
    if not isinstance(base, str) or not isinstance(revision, str | None):
        raise CheckpointError(f"{path}: base_model_name_or_path is {base!r}; give a name")
    return AdapterConfig(
        base=f"{base}@{revision}" if base and revision else base,
        rank=about.count("r"),
        alpha=_above_zero(about, "lora_alpha"),
        ranks={
            pattern: table.count(key) for key, pattern, table in _patterns(about, "rank_pattern")
        },
        alphas={
            pattern: _above_zero(table, key)
            for key, pattern, table in _patterns(about, "alpha_pattern")
        },
        is_rank_stabilized=about["use_rslora"],
    )


def _above_zero(table: Section, key: str) -> float:
    number = table.number(key)
    if not 0 < number < math.inf:
        raise CheckpointError(f"{table.where}: {table.path}{key} is {number}; give more than 0")
    return number


def _patterns(about: Section, key: str) -> list[tuple[str, re.Pattern[str], Section]]:
    """Every pattern of a table, compiled to fit names that end as it says."""
    values = about[key] or {}
    if not isinstance(values, Mapping):
        raise CheckpointError(f"{about.where}: {key} is {values!r}; give a table")
    table = Section(values, {}, about.where, f"{key}.")
    return [(text, _compiled(text, table), table) for text in values]


def _compiled(text: str, table: Section) -> re.Pattern[str]:
    is_quick = (
        len(text) <= _MAX_CHARACTERS
        and len(re.findall(r"(?<!\\)[*+?{]", text)) <= _MAX_REPEATS
        and not re.search(r"\)[*+?{]", text)
    )
    try:
        if is_quick:
            return re.compile(rf"(?:.*\.)?(?:{text})")
    except (re.error, RecursionError, OverflowError):
        pass
    raise CheckpointError(
        f"{table.where}: {table.path}{text[:_MAX_CHARACTERS]} is no simple pattern; name the layers"
    )


def _first(patterns: Mapping[re.Pattern[str], Any], layer: str, usual: Any) -> Any:
    fitting = (value for pattern, value in patterns.items() if pattern.fullmatch(layer))
    return next(fitting, usual)
