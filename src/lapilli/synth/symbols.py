"""What is in a picture, as symbols: the truth from which questions and answers are made."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

Box = tuple[float, float, float, float]
"""x1, y1, x2, y2 as shares of width and height, 0-1, origin at the top left."""

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "diamond", "ring")
COLORS = (
    "red", "green", "blue", "yellow", "purple", "orange", "pink", "brown", "black", "white", "gray",
)  # fmt: skip
SIZES = ("small", "large")

UNSEEN_PAIRS = frozenset(
    {
        ("red", "star"), ("blue", "heart"), ("green", "cross"), ("yellow", "ring"),
        ("purple", "circle"), ("orange", "diamond"), ("pink", "square"), ("brown", "triangle"),
    }
)  # fmt: skip
"""Colour-shape pairs that no training picture, text or answer ever names; kept for measuring."""


@dataclass(frozen=True, slots=True)
class Thing:
    """One object of a picture.

    Attributes:
        name: the noun, singular, without an article ("star", "apple", "t-shirt").
        box: tight bounds of what is visible.
        color: one of COLORS for drawn shapes; None where it was not labelled.
        size: "small" or "large" for drawn shapes; None elsewhere.
    """

    name: str
    box: Box
    color: str | None = None
    size: str | None = None

    @property
    def area(self) -> float:
        """Share of the picture that the box covers."""
        return (self.box[2] - self.box[0]) * (self.box[3] - self.box[1])

    @property
    def center(self) -> tuple[float, float]:
        """(x, y) of the middle of the box."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    def to_json(self) -> dict[str, Any]:
        """Names and rounded numbers for a record; what is None is left out."""
        row = {k: v for k, v in asdict(self).items() if v is not None}
        row["box"] = [round(v, 4) for v in self.box]
        return row


@dataclass(frozen=True, slots=True)
class Symbols:
    """Everything known of one picture.

    Attributes:
        things: the objects, in no special order.
        kind: "scene" (drawn shapes, complete), "collage" (photographs pasted, complete),
            "photo" (one labelled subject), "flag".
        background: a word for what is behind them ("white", "a photograph"), if known.
        extra: what else is known of a photograph (see `photos.photo_symbols`).
    """

    things: tuple[Thing, ...]
    kind: str = "scene"
    background: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
