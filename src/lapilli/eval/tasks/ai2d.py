"""AI2D: questions about diagrams from school books.

Source: Kembhavi et al. 2016, "A Diagram Is Worth a Dozen Images".
"""

from __future__ import annotations

from pathlib import Path

from lapilli.errors import DataError
from lapilli.eval.files import Row, picture, read_json
from lapilli.eval.options import OPTIONS, lettered, score_letter, written
from lapilli.eval.task import LETTER, Task
from lapilli.messages import Question

SOURCE = "https://prior.allenai.org/projects/diagram-understanding"
TEST_IDS = "ai2d_test_ids.csv"


def read(folder: Path) -> list[Question]:
    """The questions about the test pictures; about all, where the list of these is not there."""
    paths = sorted((folder / "questions").glob("*.json"))
    if not paths:
        raise DataError(f"{folder}: no questions/*.json. Get it from {SOURCE}.")
    listed = folder / TEST_IDS
    wanted = set(listed.read_text(encoding="utf-8").split()) if listed.is_file() else None
    questions = []
    for path in paths:
        if wanted is None or path.name.partition(".")[0] in wanted:
            questions += _questions(folder, Row(str(path), read_json(path)))
    return questions


def _questions(folder: Path, content: Row) -> list[Question]:
    image = picture(folder / "images", content["imageName"])
    questions = []
    for text, told in content["questions"].items():
        row = Row(f"{content.where}, {text!r}", told)
        options = lettered(row["answerTexts"])
        right = list(options)[row["correctAnswer"]]
        asked, extra = written(text, options), {OPTIONS: options}
        questions.append(Question(row["questionId"], image, asked, right, extra=extra))
    return questions


AI2D = Task("ai2d", read, score_letter, ending=LETTER)
