"""A model without weights, for a loader to fill."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from lapilli.model.llava import Llava
from lapilli.model.spec import LlavaSpec


def blank_model(spec: LlavaSpec) -> Llava:
    """Return a model whose parameters have shapes and no memory."""
    with torch.device("meta"), _WithoutInitialization():
        return Llava(spec)


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
