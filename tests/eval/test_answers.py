"""Answers files: matched by id, kept as they come, resumed where they stop."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from lapilli.errors import DataError
from lapilli.eval.answers import FILE_ID, Keeper, digest, match, models
from lapilli.eval.runner import run
from lapilli.messages import Conversation, Piece, Question, Sampling

Write = Callable[[str, Any], Path]

QUESTIONS = [Question(str(n), None, f"What is {n}?", str(n)) for n in range(5)]


class Echo:
    """Answers with the question, and fails after as many as it is told."""

    def __init__(self, limit: int = 1000) -> None:
        self.limit, self.asked = limit, list[str]()

    def respond(
        self, conversations: Sequence[Conversation], sampling: Sampling | None = None
    ) -> Iterator[Piece]:
        for index, (message,) in enumerate(conversations):
            if len(self.asked) == self.limit:
                raise KeyboardInterrupt
            self.asked.append(message.text)
            yield Piece(index, f"é {message.text}")


def keeper(path: Path, **changes: Any) -> Keeper:
    return Keeper(path, **{"model": "m", "settings": {"max_new_tokens": 16}} | changes)


def test_a_row_has_the_form_that_llava_writes(tmp_path: Path) -> None:
    kept = keeper(tmp_path / "a.jsonl")
    question = Question("a#1", None, "What?", "", extra={FILE_ID: "a"})
    run([question], Echo(), keep=kept.keep)
    row = json.loads(kept.path.read_text())
    assert list(row) == ["question_id", "prompt", "text", "answer_id", "model_id", "metadata"]
    assert row["answer_id"]
    assert {**row, "answer_id": ""} == {
        "question_id": "a", "prompt": "What?", "text": "é What?", "answer_id": "",
        "model_id": "m", "metadata": {"max_new_tokens": 16},
    }  # fmt: skip
    assert models(kept.path) == ["m"]


def test_a_second_run_asks_only_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lapilli.eval.runner.CHUNK", 2)
    kept = keeper(tmp_path / "a.jsonl")
    with pytest.raises(KeyboardInterrupt):
        run(QUESTIONS, Echo(3), known=kept.resume(QUESTIONS), keep=kept.keep)
    with kept.path.open("a") as file:
        file.write('{"question_id": "2", "prom')  # killed as it wrote
    echo, progress = Echo(), list[int]()
    known = kept.resume(QUESTIONS)
    answers = run(QUESTIONS, echo, known=known, keep=kept.keep, progress=progress.append)
    assert echo.asked == [q.text for q in QUESTIONS[2:]]
    assert progress == [4, 5]
    whole = keeper(tmp_path / "whole.jsonl")
    assert answers == run(QUESTIONS, Echo(), keep=whole.keep)
    assert kept.path.read_bytes() == whole.path.read_bytes()


@pytest.mark.parametrize("changes", [{"model": "other"}, {"settings": {"max_new_tokens": 32}}])
def test_answers_of_another_model_or_setting_are_not_taken(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    path = tmp_path / "a.jsonl"
    run(QUESTIONS, Echo(), keep=keeper(path).keep)
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"a\.jsonl:1: answered with .* Name another file"):
        keeper(path, **changes).resume(QUESTIONS)
    assert path.read_bytes() == before


def rows(write: Write, *told: tuple[Any, str, str]) -> Path:
    made = [{"question_id": i, "prompt": prompt, "text": text} for i, prompt, text in told]
    return write("rows.jsonl", made) / "rows.jsonl"


def test_numbers_and_texts_are_one_id_and_answers_to_others_are_passed_over(write: Write) -> None:
    path = rows(write, (1, "", "one"), ("0", "", "zero"), (77, "", "other"))
    assert match(QUESTIONS, path) == {"0": "zero", "1": "one"}


def test_questions_that_share_an_id_are_told_apart_by_their_prompt(write: Write) -> None:
    questions = [
        Question("1", None, "What brand?\nShort.", "", extra={FILE_ID: "pic"}),
        Question("2", None, "What year?\nShort.", "", extra={FILE_ID: "pic"}),
    ]
    path = rows(write, ("pic", "what year? \nReference OCR token: 1", "b"))
    assert match(questions, path) == {"2": "b"}


def test_two_answers_to_one_question_are_refused(write: Write) -> None:
    path = rows(write, (1, "What is 1?", "a"), (1, "What is 1?", "a"))
    assert match(QUESTIONS, path) == {"1": "a"}
    path = rows(write, (1, "What is 1?", "a"), (1, "What is 1?", "b"))
    with pytest.raises(DataError, match=r"rows\.jsonl:2: a second answer to 1"):
        match(QUESTIONS, path)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"question_id": 1}', ":1: no 'text'"),
        ('{"text": "a"}', ":1: no 'question_id'"),
        ('{"question_id": 1, "text": 5}', ":1: 'text' is no text"),
        ("[1]", ":1: not an object"),
        ("{", ":1: not JSON"),
        ("[" * 100_000, ":1: not JSON"),
    ],
)
def test_a_malformed_answer_is_named_in_one_line(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(DataError) as caught:
        match(QUESTIONS, path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_digest_knows_questions_and_not_where_they_lie(tmp_path: Path) -> None:
    first = [Question("1", tmp_path / "a.jpg", "What?", "x")]
    moved = [Question("1", tmp_path / "b" / "a.jpg", "What?", "x")]
    other = [Question("1", tmp_path / "a.jpg", "What?", "y")]
    assert digest(first) == digest(moved) != digest(other)
