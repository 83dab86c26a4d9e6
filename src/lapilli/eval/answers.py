"""Answers files: one JSON object a line, as LLaVA's own evaluation writes and reads them.

{"question_id": 1, "prompt": "...", "text": "No", "answer_id": "...", "model_id": "...",
 "metadata": {}}
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lapilli.errors import DataError
from lapilli.eval.files import Row, read_jsonl
from lapilli.messages import Question

FILE_ID = "file_id"
"""Key in a question's extra: its id in files, where several questions of a set share one."""


@dataclass(frozen=True, slots=True)
class Keeper:
    """Appends answers to a file as they come, so that a second call asks only what is missing.

    Attributes:
        path: the file, in a folder that exists.
        model: who answers.
        settings: how; answers under other settings are not taken for these.
    """

    path: Path
    model: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def resume(self, questions: Sequence[Question]) -> dict[str, str]:
        """The answers that are there, by question id. A line cut off by a kill is removed.

        Raises:
            DataError: the file holds answers of another model or under other settings.
        """
        if not self.path.exists():
            return {}
        whole = _end_of_whole_lines(self.path)
        for row in read_jsonl(self.path, end=whole):
            for name, mine, theirs in (
                ("model", self.model, row.get("model_id")),
                ("settings", dict(self.settings), row.get("metadata")),
            ):
                if mine != theirs:
                    raise DataError(
                        f"{row.where}: answered with {name} {theirs!r}, not {mine!r}. "
                        "Name another file, or remove this one."
                    )
        with self.path.open("rb+") as file:
            file.truncate(whole)
        return match(questions, self.path)

    def keep(self, question: Question, text: str) -> None:
        """Append one answer."""
        number = question.extra.get(FILE_ID, question.id)
        told = json.dumps([self.model, dict(self.settings), question.id, text])
        row = {
            "question_id": number,
            "prompt": question.text,
            "text": text,
            "answer_id": hashlib.sha256(told.encode()).hexdigest()[:22],
            "model_id": self.model,
            "metadata": dict(self.settings),
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def match(questions: Sequence[Question], path: Path) -> dict[str, str]:
    """The answers of a file by the ids of their questions, never by their order.

    Where several questions or answers share an id, the prompt tells them apart: all of it, or
    else its first line, since tools put different words after the question. Answers to no
    question of these are passed over.

    Raises:
        DataError: a question has two different answers, or the file is malformed.
    """
    answers: dict[str, list[Row]] = {}
    for row in read_jsonl(path):
        if not isinstance(row["text"], str):
            raise DataError(f"{row.where}: 'text' is no text. Write the answer as a string.")
        answers.setdefault(str(row["question_id"]), []).append(row)
    shared = Counter(_file_id(question) for question in questions)
    found: dict[str, str] = {}
    for question in questions:
        rows = answers.get(_file_id(question), [])
        if shared[_file_id(question)] > 1 or len(rows) > 1:
            rows = _with_prompt(rows, question.text)
        texts = {row["text"] for row in rows}
        if len(texts) > 1:
            raise DataError(f"{rows[1].where}: a second answer to {question.id}. Remove one.")
        if texts:
            found[question.id] = texts.pop()
    return found


def models(path: Path) -> list[str]:
    """Who answered, as the file says."""
    return sorted({str(row.get("model_id", "unknown")) for row in read_jsonl(path)})


def _file_id(question: Question) -> str:
    return str(question.extra.get(FILE_ID, question.id))


def _with_prompt(rows: Sequence[Row], prompt: str) -> list[Row]:
    """The rows whose prompt this is, or else those whose prompt begins with the same line."""
    whole = [row for row in rows if row.get("prompt") == prompt]
    return whole or [row for row in rows if _first_line(row.get("prompt")) == _first_line(prompt)]


def _first_line(prompt: Any) -> str:
    return str(prompt or "").strip().partition("\n")[0].strip().casefold()


def _end_of_whole_lines(path: Path) -> int:
    """In bytes; what follows was cut off as it was written."""
    return path.read_bytes().rfind(b"\n") + 1


def digest(questions: Sequence[Question]) -> str:
    """SHA-256 over ids, words and references in their order; pictures go in by their names."""
    hashed = hashlib.sha256()
    for q in questions:
        names = [source.name if isinstance(source, Path) else "" for source in q.images]
        row = [q.id, names, q.text, q.answer, q.category, q.extra]
        hashed.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
    return hashed.hexdigest()
