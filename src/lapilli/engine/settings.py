"""How an engine works, and what it is doing."""

from __future__ import annotations

from dataclasses import dataclass

from lapilli.engine.scheduler import Counts
from lapilli.errors import ConfigError
from lapilli.model.small_cache import KEPT, Kept
from lapilli.model.visual_tokens import CHOICES

_PICTURE_BYTES = 2**27


@dataclass(frozen=True)
class EngineSettings:
    """How an engine works; `None` chooses by the machine.

    Attributes:
        max_batch: conversations answered at once.
        max_waiting: further ones that may wait; None for any number.
        cache_tokens: tokens that the cache holds, of all conversations together.
        chunk_tokens: tokens of prompts that are read between two steps of the others' answers.
        reuses: a beginning that was read before, picture or words, is not read again.
        picture_bytes: what the features of pictures may take that were seen before.
        visual_tokens: at most so many features of a picture are shown to the language model; None
            for all. They keep their positions.
        visual_choice: which ones; a name in `lapilli.model.visual_tokens.CHOICES`.
        cache_dtype: how keys and values are kept; None for the type that the model computes in.

    Raises:
        ConfigError: a value is out of range.
    """

    max_batch: int = 16
    max_waiting: int | None = None
    cache_tokens: int | None = None
    chunk_tokens: int = 1024
    reuses: bool = True
    picture_bytes: int = _PICTURE_BYTES
    visual_tokens: int | None = None
    visual_choice: str = "diverse"
    cache_dtype: Kept | None = None

    def __post_init__(self) -> None:
        for name in ("max_batch", "chunk_tokens", "cache_tokens", "visual_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; give 1 or more")
        for name in ("max_waiting", "picture_bytes"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ConfigError(f"{name} is {value}; give 0 or more")
        if self.visual_choice not in CHOICES:
            raise ConfigError(
                f"visual_choice is {self.visual_choice!r}; give one of {', '.join(CHOICES)}"
            )
        if self.cache_dtype is not None and self.cache_dtype not in KEPT:
            raise ConfigError(
                f"cache_dtype is {self.cache_dtype!r}; give {' or '.join(KEPT)}, or None for the "
                "model's own type"
            )


@dataclass(frozen=True)
class State:
    """What an engine does at this moment, and has done.

    Attributes:
        counts: of tokens and answers so far.
        waiting: answers that have not begun.
        running: answers on their way.
        cache_tokens: tokens that the cache can hold.
        cache_bytes: what it takes.
        held_tokens: tokens of the cache that running answers hold.
        known_tokens: tokens of the cache that a later prompt may use again.
        pictures: encoded so far.
        kept_pictures: whose features are kept.
    """

    counts: Counts
    waiting: int
    running: int
    cache_tokens: int
    cache_bytes: int
    held_tokens: int
    known_tokens: int
    pictures: int
    kept_pictures: int
