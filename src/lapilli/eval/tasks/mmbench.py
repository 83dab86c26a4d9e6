"""MMBench: options about pictures, in English and Chinese, once or with the options rotated.

Source: Liu et al. 2023, "MMBench: Is Your Multi-modal Model an All-around Player?".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from lapilli.errors import DataError
from lapilli.eval.files import Row, decode_picture, find, read_tsv
from lapilli.eval.metrics import Figure, mean
from lapilli.eval.options import OPTIONS, lettered, score_letter, written
from lapilli.eval.task import LETTER, Task
from lapilli.messages import Question

SOURCE = "https://github.com/open-compass/MMBench (dev; test has no answers)"
FILES = {
    "en": ("mmbench_dev_20230712.tsv", "MMBench_DEV_EN.tsv"),
    "cn": ("mmbench_dev_cn_20231003.tsv", "MMBench_DEV_CN.tsv"),
}
LETTER_CN = "\n请直接回答选项字母。"
ROTATED_FROM = 1_000_000
"""Rows from this index on repeat others with rotated options, which are rotated here instead."""


def read(folder: Path, language: str, *, circular: bool) -> list[Question]:
    """The questions of the table of the development set; with every rotation, if circular."""
    rows = {row["index"]: row for row in read_tsv(find(folder, *FILES[language], source=SOURCE))}
    questions: list[Question] = []
    for index, row in rows.items():
        if int(index) < ROTATED_FROM:
            questions += _rotations(row, _picture(row, rows), circular)
    return questions


def _picture(row: Row, rows: dict[str, Row]) -> bytes:
    """The row's picture, or that of the row which it names instead."""
    coded = row["image"] or ""
    if len(coded) < 32 and coded.isdigit():
        coded = rows[coded]["image"]
    return decode_picture(coded, row.where)


def _rotations(row: Row, image: bytes, circular: bool) -> Iterator[Question]:
    options = [text for text in (row.get(letter) for letter in "ABCD") if text]
    by_letter = lettered(options)
    if row.get("answer") not in by_letter:
        raise DataError(f"{row.where}: no answer among its options. Get it from {SOURCE}.")
    right = by_letter[row["answer"]]
    hint = row.get("hint")
    asked = f"{hint}\n{row['question']}" if hint and hint != "nan" else row["question"]
    for turn in range(len(options) if circular else 1):
        turned = lettered(options[turn:] + options[:turn])
        letter = next(key for key, text in turned.items() if text == right)
        extra = {OPTIONS: turned, "group": row["index"]}
        number = f"{row['index']}/{turn}" if circular else row["index"]
        text = written(asked, turned)
        yield Question(number, image, text, letter, row.get("category") or "", extra)


def score_groups(questions: Sequence[Question], answers: Sequence[str]) -> dict[str, Figure]:
    """The share of questions that are right in every rotation, and of single answers."""
    groups: dict[str, float] = {}
    scores = []
    for question, answer in zip(questions, answers, strict=True):
        scores.append(score_letter(question, answer) or 0.0)
        group = question.extra["group"]
        groups[group] = min(groups.get(group, 1.0), scores[-1])
    return {"circular": mean(list(groups.values()), scale=100), "single": mean(scores, scale=100)}


def _task(language: str, ending: str, *, circular: bool) -> Task:
    name = f"mmbench-{language}" + ("-circular" if circular else "")
    figures = score_groups if circular else None
    reader = partial(read, language=language, circular=circular)
    return Task(name, reader, score_letter, figures, ending=ending)


MMBENCH = tuple(
    _task(language, ending, circular=circular)
    for language, ending in (("en", LETTER), ("cn", LETTER_CN))
    for circular in (False, True)
)
