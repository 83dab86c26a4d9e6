"""What the processor makes and the model eats."""

# B rows, T tokens (picture places included), N pictures, M views of them (whole and in tiles),
# S side in pixels

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch import Tensor

IGNORE = -100
"""The label of a token that carries no loss."""


class Views(NamedTuple):
    """Pictures as the vision tower sees them.

    Attributes:
        pixel_values, image_sizes, num_views: as in `Inputs`.
    """

    pixel_values: Tensor
    image_sizes: Tensor | None = None
    num_views: Tensor | None = None

    def to(self, device: torch.device, dtype: torch.dtype) -> Views:
        """Return a copy on `device`, with pixels of `dtype`."""
        sizes, counts = (
            None if part is None else part.to(device) for part in (self.image_sizes, self.num_views)
        )
        return Views(self.pixel_values.to(device, dtype), sizes, counts)


@dataclass(frozen=True, slots=True)
class Inputs:
    """A batch; unpacks as a mapping of what is present, so that `model(**inputs)` works.

    Attributes:
        input_ids: (B, T) int64; the image token's id keeps each picture feature's place.
        positions: (B, T) int64, from 0 in every sequence.
        groups: (B, T) int64; -1 is padding, a token sees its own group alone.
        branches: (B, T) int64; 0 is a group's trunk, seen by all of its branches; a branch sees
            the trunk and itself. None where no row branches.
        pixel_values: (M, 3, S, S) pictures in reading order, row after row, each as a whole and
            then, where it is cut, in tiles row by row; None for text alone.
        image_sizes: (N, 2) int64 height and width of the pictures; None where the model cuts none.
        num_views: (N,) int64, how many of `pixel_values` show each picture; None as `image_sizes`.
        labels: (B, T) int64, `IGNORE` where no loss falls; None outside of training.
    """

    input_ids: Tensor
    positions: Tensor
    groups: Tensor
    branches: Tensor | None = None
    pixel_values: Tensor | None = None
    image_sizes: Tensor | None = None
    num_views: Tensor | None = None
    labels: Tensor | None = None

    def keys(self) -> Iterator[str]:
        """Names of the parts that are present, labels apart (the model takes none)."""
        return (
            f.name for f in fields(self) if f.name != "labels" and getattr(self, f.name) is not None
        )

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)

    def to(self, device: torch.device, dtype: torch.dtype) -> Inputs:
        """Return a copy on `device`, with pixels of `dtype`."""
        moved: dict[str, Any] = {
            f.name: None if part is None else part.to(device)
            for f in fields(self)
            for part in [getattr(self, f.name)]
        }
        if moved["pixel_values"] is not None:
            moved["pixel_values"] = moved["pixel_values"].to(dtype)
        return replace(self, **moved)
