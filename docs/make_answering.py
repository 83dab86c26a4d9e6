"""Draw docs/answering.png: a model's own answers about examples/shapes.png.

python docs/make_answering.py                # the embedded model
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cards import CARD, INK, RIGHT, SOFT, font, wrap
from PIL import Image, ImageDraw

from lapilli import MultimodalAssistant
from lapilli.errors import LapilliError

PICTURE = Path(__file__).parents[1] / "examples" / "shapes.png"
QUESTIONS = (
    "What is in this picture?",
    "How many objects are there?",
    "What color is the heart?",
    "Is the heart left or right of the circle?",
    "Which is bigger, the heart or the circle?",
    "Where is the orange triangle?",
    "Is there a green star?",
)
SIDE, WIDTH, MARGIN, TEXT = 400, 980, 24, 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Ask, draw and save; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", help="a name or a model folder; the embedded model if left out")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("answering.png"))
    options = parser.parse_args(arguments)
    try:
        assistant = MultimodalAssistant(options.model)
        answers = assistant.query_many([(PICTURE, question) for question in QUESTIONS])
        draw_answers(list(zip(QUESTIONS, answers, strict=True))).save(options.out, optimize=True)
    except (LapilliError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def draw_answers(turns: Sequence[tuple[str, str]]) -> Image.Image:
    """Return the picture with questions and answers on its right."""
    left = 2 * MARGIN + SIDE
    room = WIDTH - left - MARGIN
    lines: list[tuple[str, str, int]] = []
    for question, answer in turns:
        lines += [(line, SOFT, 0) for line in wrap(question, TEXT, room)]
        lines += [(line, RIGHT, 0) for line in wrap(answer, TEXT, room)]
        lines[-1] = (*lines[-1][:2], TEXT // 2)
    step = round(TEXT * 1.3)
    tall = len(lines) * step + sum(gap for *_, gap in lines[:-1])
    height = max(SIDE, tall) + 2 * MARGIN
    image = Image.new("RGB", (WIDTH, height), CARD)
    draw = ImageDraw.Draw(image)
    with Image.open(PICTURE) as picture:
        shown = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    image.paste(shown, (MARGIN, (height - SIDE) // 2))
    draw.rectangle((MARGIN, (height - SIDE) // 2, MARGIN + SIDE, (height + SIDE) // 2), outline=INK)
    top = (height - tall) // 2
    for line, ink, gap in lines:
        draw.text((left, top), line, fill=ink, font=font(TEXT))
        top += step + gap
    return image


if __name__ == "__main__":
    sys.exit(main())
