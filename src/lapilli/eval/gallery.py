"""A page that shows what a model got wrong and right, kind by kind, complete in one file."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from lapilli.errors import DataError
from lapilli.eval.metrics import parse_box
from lapilli.eval.runner import Answer, Report, summarize
from lapilli.messages import Question

SHOWN = 12
"""Wrong answers shown of each kind, and right ones; the first that were asked, not a choice."""
PICTURE_PX = 384
"""Longer side at most; larger pictures are reduced."""

Score = Callable[[Question, str], float]
Scored = tuple[Question, str, float]

# The policy keeps the page what it says it is: nothing is fetched and nothing runs.
_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --paper: #fff; --card: #f4f4f5; --ink: #1b1b1f;
  --soft: #55555e; --line: #d4d4d8; --right: #14692f; --wrong: #a3231b; }}
@media (prefers-color-scheme: dark) {{ :root {{ --paper: #17171a; --card: #232328;
  --ink: #ececf0; --soft: #b0b0ba; --line: #45454e; --right: #6fd08c; --wrong: #ff9a90; }} }}
body {{ margin: 0 auto; padding: 1rem; max-width: 80rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.45 system-ui, sans-serif; overflow-wrap: anywhere; }}
a {{ color: inherit; }}
table {{ border-collapse: collapse; }}
th, td {{ padding: .2rem 1rem .2rem 0; border-bottom: 1px solid var(--line); text-align: left; }}
td + td {{ font-variant-numeric: tabular-nums; }}
ul {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 13rem), 1fr));
  gap: .75rem; margin: 0; padding: 0; list-style: none; }}
li {{ padding: .6rem; border-radius: .5rem; border-top: .25rem solid var(--tone);
  background: var(--card); }}
.right {{ --tone: var(--right); }}
.wrong {{ --tone: var(--wrong); }}
.picture {{ position: relative; }}
.picture img {{ display: block; width: 100%; height: auto; }}
.picture svg {{ position: absolute; inset: 0; width: 100%; height: 100%; overflow: hidden; }}
rect {{ fill: none; vector-effect: non-scaling-stroke; }}
.halo {{ stroke: #000; stroke-width: 5; }}
.truth {{ stroke: #5dff8f; stroke-width: 2.5; }}
.said {{ stroke: #ffb347; stroke-width: 2.5; stroke-dasharray: 7 5; }}
.question {{ margin: .5rem 0 .3rem; font-weight: 600; white-space: pre-line; }}
dl {{ display: grid; grid-template-columns: auto 1fr; gap: .1rem .6rem; margin: 0; }}
dt {{ color: var(--soft); }}
dd {{ margin: 0; white-space: pre-line; }}
dd.answer {{ color: var(--tone); font-weight: 600; }}
.note {{ color: var(--soft); }}
</style>
</head>
<body>
"""


def write_gallery(
    path: Path, title: str, questions: Sequence[Question], answers: Sequence[Answer], score: Score
) -> None:
    """Write one HTML page of right and wrong answers by kind, wrong ones first.

    It holds its pictures and needs nothing else. A box is drawn over its picture: the true one as
    a solid line, the answered one dashed.

    Args:
        path: the file to write.
        title: what was measured.
        questions: `image` is a path, a PIL image, or None where no picture was shown.
        answers: one to each question.
        score: 1.0 is right; everything less is shown as wrong, with its score.

    Raises:
        DataError: a question has no answer, or its picture cannot be opened.
    """
    report = summarize(questions, answers, score)
    texts = {answer.question_id: answer.text for answer in answers}
    kinds: dict[str, list[Scored]] = {}
    for question in questions:
        text = texts[question.id]
        kinds.setdefault(question.category, []).append((question, text, score(question, text)))
    parts = [_HEAD.format(title=escape(title)), f"<h1>{escape(title)}</h1>\n", *_table(report)]
    for number, (kind, rows) in enumerate(kinds.items()):
        parts.append(f'<h2 id="kind-{number}">{escape(kind)}</h2>\n')
        parts += _row_of_cards("wrong", [row for row in rows if row[2] < 1])
        parts += _row_of_cards("right", [row for row in rows if row[2] >= 1])
    parts.append("</body>\n</html>\n")
    path.write_text("".join(parts), encoding="utf-8")


def _table(report: Report) -> Iterator[str]:
    yield "<table>\n<tr><th>kind<th>questions<th>score<th>95% interval\n"
    for number, (kind, category) in enumerate(report.categories.items()):
        yield (
            f'<tr><td><a href="#kind-{number}">{escape(kind)}</a><td>{category.count}'
            f"<td>{category.mean:.3f}<td>{category.low:.3f}-{category.high:.3f}\n"
        )
    yield "</table>\n"
    yield (
        f'<p class="note">Of each kind, the first {SHOWN} wrong and the first {SHOWN} right '
        "answers. A solid line is the true box, a dashed one the answered box.</p>\n"
    )


def _row_of_cards(verdict: str, rows: Sequence[Scored]) -> Iterator[str]:
    if not rows:
        return
    shown = rows[:SHOWN]
    of_all = f" of {len(rows)}" if len(shown) < len(rows) else ""
    yield f"<h3>{verdict.capitalize()}: {len(shown)}{of_all}</h3>\n<ul>\n"
    for question, text, value in shown:
        yield f'<li class="{verdict}">\n{_picture(question, text)}'
        yield f'<p class="question">{escape(question.text)}</p>\n<dl>\n'
        yield f'<dt>answer<dd class="answer">{escape(text.strip()) or "(nothing)"}\n'
        yield f"<dt>truth<dd>{escape(question.answer)}\n"
        if 0 < value < 1:
            yield f"<dt>score<dd>{value:.2f}\n"
        yield "</dl>\n</li>\n"
    yield "</ul>\n"


def _picture(question: Question, text: str) -> str:
    """The picture with the boxes of truth and answer over it."""
    if question.image is None:
        return '<p class="note">No picture was shown.</p>\n'
    boxes, seen = [], "The picture that was asked about"
    if "box" in question.extra:
        boxes.append(_rectangle("truth", question.extra["box"]))
        said = parse_box(text)
        boxes.append(_rectangle("said", said) if said else "")
        seen += ", with the true box" + (" and the answered one" if said else "")
    drawn = f'<svg viewBox="0 0 1 1" preserveAspectRatio="none" aria-hidden="true">{"".join(boxes)}'
    return (
        f'<div class="picture"><img src="{_data_url(question)}" '
        f'alt="{escape(f"{seen}: {question.text}")}" loading="lazy">'
        f"{drawn + '</svg>' if boxes else ''}</div>\n"
    )


def _rectangle(name: str, box: Sequence[float]) -> str:
    """A line of this name on a wider dark one, so that it shows on any picture."""
    x1, y1, x2, y2 = box
    where = f'x="{x1:.4f}" y="{y1:.4f}" width="{x2 - x1:.4f}" height="{y2 - y1:.4f}"'
    return f'<rect class="halo" {where}/><rect class="{name}" {where}/>'


def _data_url(question: Question) -> str:
    picture = _open(question)
    kind = "JPEG" if max(picture.size) > PICTURE_PX else "PNG"
    picture.thumbnail((PICTURE_PX, PICTURE_PX))
    buffer = io.BytesIO()
    picture.save(buffer, kind, **({"quality": 85} if kind == "JPEG" else {"optimize": True}))
    coded = base64.b64encode(buffer.getvalue()).decode()
    return f"data:image/{kind.lower()};base64,{coded}"


def _open(question: Question) -> Image.Image:
    """A copy of the question's picture, upright, in RGB, clear parts white as models see them."""
    source: Any = question.image
    try:
        with source.copy() if isinstance(source, Image.Image) else Image.open(source) as opened:
            upright = ImageOps.exif_transpose(opened)
            if not upright.has_transparency_data:
                return upright.convert("RGB")
            layers = upright.convert("RGBA")
    except OSError as error:
        raise DataError(
            f"question {question.id}: {source} cannot be opened ({error}). Restore the picture."
        ) from error
    paper = Image.new("RGBA", layers.size, "white")
    return Image.alpha_composite(paper, layers).convert("RGB")
