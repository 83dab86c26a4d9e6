"""MMMU: college questions about one or several pictures, with options or open.

Source: Yue et al. 2023, "MMMU: A Massive Multi-discipline Multimodal Understanding and Reasoning
Benchmark".
"""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path
from typing import Any

from lapilli.errors import DataError
from lapilli.eval.files import MAX_PICTURE_BYTES, Row
from lapilli.eval.options import OPTIONS, lettered, score_letter, written
from lapilli.eval.task import LETTER, SHORT, Task
from lapilli.messages import Question

SOURCE = "https://huggingface.co/datasets/MMMU/MMMU"
MOST_IMAGES = 7

_NUMBER = re.compile(r"-?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:e[+-]?\d+)?")
_KEY = re.compile(r".*(?:could be |so |is |thus |therefore |final |answer |result |=)")


def read(folder: Path) -> list[Question]:
    """The validation questions, by subject, from SUBJECT/validation-*.parquet.

    Pictures are shown first, in their order; "<image 2>" stays in the words where it stood.
    """
    paths = sorted(folder.glob("*/validation-*.parquet"))
    if not paths:
        raise DataError(f"{folder}: no SUBJECT/validation-*.parquet. Get it from {SOURCE}.")
    questions = []
    for path in paths:
        for number, content in enumerate(_rows(path), 1):
            row = Row(f"{path}, row {number}", content)
            questions.append(_question(row, path.parent.name))
    return questions


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise DataError(f"{path}: needs pyarrow to be read; pip install pyarrow") from error
    return parquet.read_table(path).to_pylist()


def _question(row: Row, subject: str) -> Question:
    pictures = [row.get(f"image_{n}") for n in range(1, MOST_IMAGES + 1)]
    images = tuple(one["bytes"] for one in pictures if one)
    if any(len(image) > MAX_PICTURE_BYTES for image in images):
        raise DataError(f"{row.where}: a picture of more than {MAX_PICTURE_BYTES >> 20} MiB")
    # Options and several answers are written as Python lists of texts.
    options = lettered([str(text) for text in ast.literal_eval(row["options"])])
    answers = [row["answer"]]
    if not options and row["answer"].startswith("["):
        answers = [str(text) for text in ast.literal_eval(row["answer"])]
    ending = LETTER if options else SHORT
    return Question(
        row["id"],
        images[0] if images else None,
        written(row["question"], options) + ending,
        answers[0],
        subject,
        {OPTIONS: options, "answers": answers},
        images[1:],
    )


def score(question: Question, answer: str) -> float | None:
    """1.0 if the letter is right, or an open answer holds a reference."""
    if question.extra[OPTIONS]:
        return score_letter(question, answer)
    return float(holds(answer, question.extra["answers"]))


def holds(answer: str, references: list[str]) -> bool:
    """Whether an open answer tells one of the references in the part that matters.

    That part of each line is what follows the last of "is", "so", "answer", "=" and the like.
    Numbers are the same if they agree in two decimals.
    """
    parts = _key_parts(answer)
    words = [f" {part} " for part in parts if _number(part) is None]
    numbers = {_number(text) for part in parts for text in (part, *_NUMBER.findall(part))}
    for reference in references:
        number = _number(reference)
        if number is not None:
            if number in numbers:
                return True
        else:
            told = reference.strip().lower()
            told = f" {told} " if len(told) == 1 else told
            if any(told in text for text in words):
                return True
    return False


def _key_parts(answer: str) -> list[str]:
    text = answer.strip().strip(".").lower()
    found = [_KEY.match(line) for line in text.splitlines()]
    parts = [m.string[m.end() :].strip() for m in found if m]
    return [part for part in parts if part.strip(":,.!?;'")] or [text]


def _number(text: str) -> float | None:
    try:
        return round(float(text.replace(",", "")), 2)
    except ValueError:
        return None


MMMU = Task("mmmu", read, score, max_new_tokens=32)
