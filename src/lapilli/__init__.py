"""Lapilli: build, train, ask, measure and serve vision-language models of the LLaVA family.

The public names are imported when they are first used, so that `import lapilli` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lapilli.assistant import MultimodalAssistant
    from lapilli.checkpoints.loading import load

__version__ = "0.1.0"
__all__ = ["MultimodalAssistant", "__version__", "load"]

_HOMES = {
    "MultimodalAssistant": "lapilli.assistant",
    "load": "lapilli.checkpoints.loading",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'lapilli' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
