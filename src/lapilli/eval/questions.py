"""Reads a folder of one's own: `questions.jsonl` and the pictures that it names.

{"question_id": 1, "image": "a.jpg", "text": "How many?", "answer": "2", "category": "count"}
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from lapilli.errors import DataError
from lapilli.eval.answers import FILE_ID
from lapilli.eval.files import Row, find, picture, read_jsonl
from lapilli.messages import ImageSource, Question

FILE = "questions.jsonl"
SOURCE = "the folder's maker, or write it: an object a line with question_id, text and answer"
_KNOWN = frozenset({"question_id", "image", "text", "answer", "category"})


def read_questions(folder: Path) -> list[Question]:
    """The questions of the folder's file, with its other keys as what they are scored by.

    `answers`, a list, may stand for `answer`; `image` may be left out, be a path inside the
    folder, or a list of paths.

    Raises:
        DataError: there is no such file, or a row lacks a key.
    """
    return [_question(folder, row) for row in read_jsonl(find(folder, FILE, source=SOURCE))]


def read_asked(path: Path, images: Path) -> list[Question]:
    """The questions of a file, without answers to compare with.

    Args:
        path: JSON lines with `question_id`, `text` and, where there are pictures, `image`.
        images: the folder of the pictures.

    Raises:
        DataError: there is no such file, a row lacks a key, or two have the same id.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; name one of JSON lines")
    questions = [_asked(images, row, "") for row in read_jsonl(path)]
    repeated = [id for id, count in Counter(q.id for q in questions).items() if count > 1]
    if repeated:
        raise DataError(f"{path}: question_id {repeated[0]} stands there twice; give each its own")
    return questions


def _question(folder: Path, row: Row) -> Question:
    answers = row.get("answers")
    return _asked(folder, row, str(answers[0] if answers else row["answer"]))


def _asked(folder: Path, row: Row, answer: str) -> Question:
    pictures = tuple(_pictures(folder, row))
    return Question(
        str(row["question_id"]),
        pictures[0] if pictures else None,
        row["text"],
        answer,
        row.get("category", ""),
        {key: value for key, value in row.items() if key not in _KNOWN}
        | {FILE_ID: row["question_id"]},
        pictures[1:],
    )


def _pictures(folder: Path, row: Row) -> Iterator[ImageSource]:
    named = row.get("image")
    for name in [] if named is None else named if isinstance(named, list) else [named]:
        yield picture(folder, name)


def references(question: Question) -> list[str]:
    """All reference answers of a question."""
    return [str(answer) for answer in question.extra.get("answers") or [question.answer]]
