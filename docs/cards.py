"""Cards: a picture with what was asked and answered under it, drawn for the documentation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

PAPER, CARD, INK, SOFT = "#ffffff", "#f4f4f5", "#1b1b1f", "#55555e"
RIGHT, WRONG = "#14692f", "#b3261e"
PAD = 8

Box = Sequence[float]
"""x1, y1, x2, y2 as shares of the picture."""


@dataclass(frozen=True)
class Card:
    """One answer.

    Attributes:
        image: what was asked about.
        truth: the right answer where another was given; None for a right answer.
        boxes: the true box and the answered one, where a box was asked for.
    """

    image: Image.Image
    question: str
    answer: str
    truth: str | None = None
    boxes: tuple[Box | None, Box | None] = (None, None)


@lru_cache
def font(size_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, so that every machine draws the same."""
    return ImageFont.load_default(size_px)


def wrap(text: str, size_px: int, width_px: int) -> list[str]:
    """Return the text in lines of at most `width_px`; a longer word has a line of its own."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font(size_px).getlength(longer) > width_px:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def draw_card(card: Card, width_px: int, text_px: int = 13) -> Image.Image:
    """Return the card; its height follows from its words."""
    inner = width_px - 2 * PAD
    tone = RIGHT if card.truth is None else WRONG
    lines = [(line, INK) for line in wrap(card.question, text_px, inner)]
    lines += [(line, tone) for line in wrap(card.answer or "(nothing)", text_px, inner)]
    if card.truth is not None:
        lines += [(line, SOFT) for line in wrap(f"true: {card.truth}", text_px, inner)]
    step = round(text_px * 1.3)
    picture = card.image.convert("RGB").resize((inner, inner), Image.Resampling.LANCZOS)
    _outline(picture, card.boxes)
    image = Image.new("RGB", (width_px, 3 * PAD + inner + step * len(lines)), CARD)
    image.paste(picture, (PAD, PAD))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, width_px, 3), fill=tone)
    for number, (line, ink) in enumerate(lines):
        draw.text((PAD, 2 * PAD + inner + number * step), line, fill=ink, font=font(text_px))
    return image


def draw_sheet(
    title: str, rows: Sequence[tuple[str, Sequence[Card]]], card_px: int = 176
) -> Image.Image:
    """Return a sheet with one row of cards under each heading."""
    num_columns = max(len(cards) for _, cards in rows)
    parts: list[tuple[str, int, list[Image.Image]]] = [(title, 20, [])]
    parts += [(head, 15, [draw_card(card, card_px) for card in cards]) for head, cards in rows]
    heights = [
        size_px + 2 * PAD + max((image.height + PAD for image in images), default=0)
        for _, size_px, images in parts
    ]
    sheet = Image.new("RGB", (PAD + num_columns * (card_px + PAD), sum(heights) + PAD), PAPER)
    draw, top = ImageDraw.Draw(sheet), 0
    for (head, size_px, images), height in zip(parts, heights, strict=True):
        draw.text((PAD, top + PAD), head, fill=INK, font=font(size_px))
        for column, image in enumerate(images):
            sheet.paste(image, (PAD + column * (card_px + PAD), top + size_px + 2 * PAD))
        top += height
    return sheet


def _outline(picture: Image.Image, boxes: tuple[Box | None, Box | None]) -> None:
    """Draw the true box and, over it, the answered one, each on a wider dark line."""
    draw = ImageDraw.Draw(picture)
    for box, ink in zip(boxes, ("#5dff8f", "#ffb347"), strict=True):
        if box is not None:
            corners = [value * picture.width for value in box]
            draw.rectangle(corners, outline="black", width=4)
            draw.rectangle([corners[0] + 1, corners[1] + 1, corners[2] - 1, corners[3] - 1],
                           outline=ink, width=2)  # fmt: skip
