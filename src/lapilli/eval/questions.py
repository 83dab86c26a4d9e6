"""Reads a folder of one's own: `questions.jsonl` and the pictures that it names.

{"question_id": 1, "image": "a.jpg", "text": "How many?", "answer": "2", "category": "count"}
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


def _question(folder: Path, row: Row) -> Question:
    extra: dict[str, Any] = {key: value for key, value in row.items() if key not in _KNOWN}
    answer = extra["answers"][0] if extra.get("answers") else row["answer"]
    pictures = tuple(_pictures(folder, row))
    return Question(
        str(row["question_id"]),
        pictures[0] if pictures else None,
        row["text"],
        str(answer),
        row.get("category", ""),
        extra,
        pictures[1:],
    )


def _pictures(folder: Path, row: Row) -> Iterator[ImageSource]:
    named = row.get("image")
    for name in [] if named is None else named if isinstance(named, list) else [named]:
        yield picture(folder, name)


def references(question: Question) -> list[str]:
    """All reference answers of a question."""
    return [str(answer) for answer in question.extra.get("answers") or [question.answer]]
