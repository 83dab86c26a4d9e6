"""A picture in tiles, in numbers alone: which grid it takes, and how many features come of it.

The processor keeps places and the model packs features by these same numbers, so that the two
cannot disagree.
"""

# sizes are (height, width), grids are (rows, columns)

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lapilli.errors import ConfigError

Size = tuple[int, int]
Parity = Literal["hf", "original"]

MAX_GRID = 256
"""Tiles of the largest grid that is taken; the largest known one has 36."""
_MIN_SHRINK = 1.1
"""A smaller excess over `max_tiles` is let be."""


def grids_of(pinpoints: Sequence[Sequence[int]], tile_px: int, parity: Parity) -> tuple[Size, ...]:
    """Return the grids that a list of resolutions means.

    Args:
        pinpoints: pairs of pixels; height and width to "hf", width and height to "original". As
            the first of equal grids wins, the two differ in what a square picture takes.

    Raises:
        ConfigError: a pair is no whole number of tiles.
    """
    grids = []
    for pair in pinpoints:
        if len(pair) != 2 or any(not isinstance(px, int) or px < 1 or px % tile_px for px in pair):
            raise ConfigError(
                f"resolution {list(pair)}; give two sides that are multiples of {tile_px} pixels"
            )
        first, second = (px // tile_px for px in pair)
        grids.append((first, second) if parity == "hf" else (second, first))
    return tuple(grids)


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a picture is seen whole and in tiles, and how the features of both are packed.

    Attributes:
        tile_px: side of a tile, in pixels; that of the vision tower's input.
        tile_features: features along the side of a tile.
        grids: of tiles, from which each picture takes the one that fits it best.
        max_tiles: the features of a grid are shrunk to those of as many tiles (LLaVA-OneVision);
            None to keep all.
        tiles_several: cut also pictures that are not alone in their conversation (LLaVA-NeXT);
            else they are seen whole.
        parity: whose rounding is followed: "hf" for `transformers`, "original" for the code that
            LLaVA was published with. They count a feature row differently where a product that
            should be whole comes out a little below.

    Raises:
        ConfigError: a value is out of range.

    Source: Liu et al. 2024, "LLaVA-NeXT"; Li et al. 2024, "LLaVA-OneVision", section 3.3.
    """

    tile_px: int
    tile_features: int
    grids: tuple[Size, ...]
    max_tiles: int | None = None
    tiles_several: bool = True
    parity: Parity = "hf"

    def __post_init__(self) -> None:
        if not self.grids:
            raise ConfigError("grids is empty; give one or more")
        if min(self.tile_px, self.tile_features, self.max_tiles or 1, *map(min, self.grids)) < 1:
            raise ConfigError("tile_px, tile_features, max_tiles and grids must be positive")
        largest = max(math.prod(grid) for grid in self.grids)
        if largest > MAX_GRID:
            raise ConfigError(f"a grid of {largest} tiles; give {MAX_GRID} or fewer")
        if self.parity not in ("hf", "original"):
            raise ConfigError(f"parity {self.parity!r} is unknown; give hf or original")

    def following(self, parity: Parity) -> Tiling:
        """Return the tiling that the same list of resolutions means to another.

        One takes a pair for height and width, the other for width and height; models that were
        converted keep the list as it was.
        """
        if parity == self.parity:
            return self
        grids = tuple((columns, rows) for rows, columns in self.grids)
        return replace(self, grids=grids, parity=parity)

    # Pixels

    def grid(self, size: Size) -> Size:
        """Return the grid for a picture: it shows the most of the picture's own pixels, then
        wastes the least, then stands first in the list."""
        height, width = size

        def fitness(grid: Size) -> Size:
            rows_px, columns_px = (count * self.tile_px for count in grid)
            scale = min(columns_px / width, rows_px / height)
            effective = min(int(width * scale) * int(height * scale), width * height)
            return effective, effective - rows_px * columns_px

        return max(self.grids, key=fitness)

    def canvas(self, size: Size) -> Size:
        """Return the size of a picture's grid, in pixels."""
        rows, columns = self.grid(size)
        return rows * self.tile_px, columns * self.tile_px

    def resized(self, size: Size) -> Size:
        """Return the size of a picture in the middle of its canvas, its aspect kept."""
        (height, width), (full_height, full_width) = size, self.canvas(size)
        across, down = full_width / width, full_height / height
        if across < down:
            return min(math.ceil(height * across), full_height), full_width
        return full_height, min(math.ceil(width * down), full_width)

    def num_views(self, size: Size) -> int:
        """Return how many squares are seen of a picture: it as a whole, and its tiles."""
        return 1 + math.prod(self.grid(size))

    # Features

    def features_of_grid(self, size: Size) -> Size:
        """Return rows and columns of the features of all tiles."""
        rows, columns = self.grid(size)
        return rows * self.tile_features, columns * self.tile_features

    def unpadded(self, size: Size) -> Size:
        """Return rows and columns without those that show padding alone; a picture that is far
        longer than wide leaves none."""
        (height, width), (rows, columns) = size, self.features_of_grid(size)
        if width / height > columns / rows:
            return rows - 2 * ((rows - self._floor(height * (columns / width))) // 2), columns
        return rows, columns - 2 * ((columns - self._floor(width * (rows / height))) // 2)

    def shrunk(self, size: Size) -> Size:
        """Return rows and columns as the language model gets them."""
        rows, columns = self.unpadded(size)
        if self.max_tiles is None:
            return rows, columns
        excess = math.sqrt(rows * columns / (self.max_tiles * self.tile_features**2))
        if excess <= _MIN_SHRINK:
            return rows, columns
        return max(int(rows // excess), 1), max(int(columns // excess), 1)

    def num_features(self, size: Size) -> int:
        """Return the features of a picture that is cut: those of the whole, then those of the
        tiles, each row of them ended by a newline."""
        rows, columns = self.shrunk(size)
        return self.tile_features**2 + rows * (columns + 1)

    @property
    def num_whole_features(self) -> int:
        """The features of a picture that is not cut, and a newline."""
        return self.tile_features**2 + 1

    def _floor(self, length: float) -> int:
        return int(length if self.parity == "original" else round(length, 7))
