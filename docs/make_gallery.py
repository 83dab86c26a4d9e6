"""Draw a sheet of right and wrong answers of a model, a row for each kind of question.

    python docs/make_gallery.py                              # the embedded model
    python docs/make_gallery.py --model runs/tiny/4-instruct/model --grade hard

Up to half of a row are wrong answers, the rest are right; both are the first that came, not a
choice, save that right answers about pictures not yet shown go first. Validation pictures
are asked about. `lapilli eval drawn --gallery FILE.html` shows more of them, on a page
for a browser.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cards import Card, draw_sheet

from lapilli import MultimodalAssistant
from lapilli.app.measuring import LONGEST_ANSWER, drawn_questions
from lapilli.errors import LapilliError
from lapilli.eval.metrics import parse_box
from lapilli.eval.runner import run
from lapilli.eval.tasks.drawn import score
from lapilli.messages import Question, Responder, Sampling

COLUMNS = 6


def main(arguments: Sequence[str] | None = None) -> int:
    """Ask, draw and save; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", help="a name or a model folder; the embedded model if left out")
    parser.add_argument("--grade", choices=("plain", "hard"), default="plain")
    parser.add_argument("--count", type=int, default=50, help="questions of each kind")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("gallery.png"))
    options = parser.parse_args(arguments)
    try:
        assistant = MultimodalAssistant(options.model)
        questions = drawn_questions(options.grade, options.count, "validation", 0, unseen=False)
        sheet = draw_sheet(
            f"{options.grade} pictures, validation questions: wrong answers (red) and right ones",
            make_rows(questions, assistant.engine),
        )
        sheet.quantize(256).save(options.out, optimize=True)
    except (LapilliError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def make_rows(questions: Sequence[Question], responder: Responder) -> list[tuple[str, list[Card]]]:
    """Return a heading with the score, and cards, for each kind."""
    answers = run(questions, responder, sampling=Sampling(max_new_tokens=LONGEST_ANSWER))
    kinds: dict[str, list[tuple[Question, str, float]]] = {}
    for question, answer in zip(questions, answers, strict=True):
        row = question, answer.text.strip(), score(question, answer.text)
        kinds.setdefault(question.category, []).append(row)
    rows, seen = [], set[int]()
    for kind, scored in kinds.items():
        wrong = [row for row in scored if row[2] < 1]
        right = [row for row in scored if row[2] >= 1]
        right.sort(key=lambda row: id(row[0].image) in seen)
        num_wrong = min(len(wrong), max(COLUMNS // 2, COLUMNS - len(right)))
        shown = [*wrong[:num_wrong], *right[: COLUMNS - num_wrong]]
        seen |= {id(row[0].image) for row in shown}
        mean = sum(row[2] for row in scored) / len(scored)
        heading = f"{kind}: {mean:.2f} of {len(scored)} questions, {len(wrong)} not wholly right"
        rows.append((heading, [make_card(*row) for row in shown]))
    return rows


def make_card(question: Question, answer: str, value: float) -> Card:
    """Return a card that tells the truth beside an answer that is not wholly right."""
    truth = None if value >= 1 else question.answer
    boxes = (question.extra["box"], parse_box(answer)) if "box" in question.extra else (None, None)
    return Card(question.image, question.text, answer, truth, boxes)


if __name__ == "__main__":
    sys.exit(main())
