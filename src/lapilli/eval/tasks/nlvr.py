"""NLVR and NLVR2: is a sentence true of a drawn picture, or of two photographs.

Sources: Suhr et al. 2017, "A Corpus of Natural Language for Visual Reasoning"; Suhr et al. 2019,
"A Corpus for Reasoning About Natural Language Grounded in Photographs".
"""

from __future__ import annotations

import re
from pathlib import Path

from lapilli.eval.files import Row, find, picture, read_jsonl
from lapilli.eval.task import Task
from lapilli.messages import Question

NLVR_SOURCE = "https://github.com/lil-lab/nlvr (nlvr)"
NLVR2_SOURCE = "https://github.com/lil-lab/nlvr (nlvr2)"
ENDING = "\nAnswer with true or false."
_VERDICT = re.compile(r"\b(true|yes|false|no|not)\b", re.IGNORECASE)


def read_nlvr(folder: Path) -> list[Question]:
    """The development sentences, each with the first of the six drawings of its picture."""
    path = find(folder, "dev.jsonl", "dev.json", "dev/dev.json", source=NLVR_SOURCE)
    questions = []
    for number, row in enumerate(read_jsonl(path)):
        if "image" in row:
            name, image = str(number), picture(folder, row["image"])
        else:
            name = row["identifier"]
            inside = f"{row['directory']}/dev-{name}-0.png"
            image = picture(path.parent / "images", inside)
        questions.append(Question(name, image, _sentence(row), _label(row)))
    return questions


def read_nlvr2(folder: Path) -> list[Question]:
    """The development sentences, each with its left and right photograph."""
    questions = []
    for row in read_jsonl(find(folder, "dev.json", "data/dev.json", source=NLVR2_SOURCE)):
        shared = row["identifier"].rpartition("-")[0]
        left, right = (picture(folder / "dev", f"{shared}-img{n}.png") for n in (0, 1))
        text = _sentence(row, "The first picture is the left one. ")
        question = Question(row["identifier"], left, text, _label(row), more_images=(right,))
        questions.append(question)
    return questions


def _sentence(row: Row, before: str = "") -> str:
    return f"{before}Is this sentence true? {row['sentence'].strip()}"


def _label(row: Row) -> str:
    label = str(row["label"]).lower()
    if label not in ("true", "false"):
        raise ValueError(f"{row.where}: label {label!r} is neither true nor false")
    return label


def score(question: Question, answer: str) -> float | None:
    """1.0 if the first of true, yes, false and no is right."""
    found = _VERDICT.search(answer)
    if found is None:
        return None
    return float((found[1].lower() in ("true", "yes")) == (question.answer == "true"))


NLVR = Task("nlvr", read_nlvr, score, ending=ENDING)
NLVR2 = Task("nlvr2", read_nlvr2, score, ending=ENDING)
