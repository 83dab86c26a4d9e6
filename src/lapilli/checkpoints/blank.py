"""A model without weights, for a loader to fill."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from lapilli.errors import CheckpointError, ConfigError
from lapilli.model.llava import Llava
from lapilli.model.spec import ForeignSpec, LlavaSpec


def blank_model(spec: LlavaSpec) -> Llava:
    """Return a model whose parameters have shapes and no memory.

    Raises:
        CheckpointError: `transformers` cannot build the decoder.
    """
    if isinstance(spec.decoder, ForeignSpec):
        warnings.warn(
            f"this model's decoder, {spec.decoder.model_type}, runs through transformers: slower "
            "than Llama, Mistral and Qwen2",
            stacklevel=3,
        )
    try:
        with torch.device("meta"), _WithoutInitialization():
            return Llava(spec)
    except ConfigError as error:
        raise CheckpointError(f"{error}; copy config.json again") from error


class _WithoutInitialization(TorchFunctionMode):
    """Passes over `torch.nn.init`, whose functions load torch's compiler for a tensor without
    memory: nearly a second, and 100 MB."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == torch.nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
