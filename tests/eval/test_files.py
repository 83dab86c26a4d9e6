"""Files of data sets: what they name stays inside, and what is wrong is one line."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lapilli.eval.files as files
from lapilli.errors import DataError
from lapilli.eval.files import decode_picture, picture, read_tsv
from lapilli.eval.task import Task, check_pictures
from lapilli.eval.tasks.folder import folder_task
from lapilli.messages import Question

Write = Callable[[str, Any], Path]


@pytest.mark.parametrize(
    "name", ["../a.jpg", "b/../../a.jpg", "/etc/passwd", "C:\\a.jpg", "..\\a.jpg", "", None, "a\0"]
)
def test_a_picture_outside_the_folder_is_refused(tmp_path: Path, name: str | None) -> None:
    with pytest.raises(DataError):
        picture(tmp_path, name)


def test_a_picture_inside_the_folder_is_found(tmp_path: Path) -> None:
    assert picture(tmp_path, "b/a.jpg") == tmp_path / "b" / "a.jpg"


def test_a_picture_in_a_file_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert decode_picture(base64.b64encode(b"picture").decode(), "row 1") == b"picture"
    with pytest.raises(DataError, match="row 1: damaged picture"):
        decode_picture("%%%", "row 1")
    monkeypatch.setattr(files, "MAX_PICTURE_BYTES", 30)
    with pytest.raises(DataError, match="row 1: a picture of more than"):
        decode_picture("A" * 48, "row 1")


def test_a_field_of_a_table_is_bounded(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("t.tsv", "index\timage\n1\t" + "A" * 200_000) / "t.tsv"
    assert len(read_tsv(path)[0]["image"]) == 200_000
    monkeypatch.setattr(files, "MAX_PICTURE_BYTES", 30)
    with pytest.raises(DataError, match="not a table with tabs"):
        read_tsv(path)


def own(write: Write, *rows: dict[str, object]) -> Path:
    return write("questions.jsonl", list(rows))


def test_a_folder_of_ones_own_is_read(write: Write) -> None:
    folder = own(
        write,
        {"question_id": 1, "image": "a.jpg", "text": "How many?", "answer": 2, "category": "n"},
        {"question_id": 2, "text": "Why?", "answers": ["so", "thus"]},
        {"question_id": 3, "image": ["a.jpg", "b.jpg"], "text": "Same?", "answer": "no"},
    )
    first, second, third = folder_task("exact").load(folder)
    assert (first.id, first.image, first.answer, first.category) == (
        "1",
        folder / "a.jpg",
        "2",
        "n",
    )
    assert (second.images, second.extra) == ((), {"answers": ["so", "thus"], "file_id": 2})
    assert third.images == (folder / "a.jpg", folder / "b.jpg")
    score = folder_task("exact").score
    assert score is not None
    assert [score(second, text) for text in ("Thus.", "so", "why")] == [1, 1, 0]


def test_two_questions_with_one_id_are_refused(write: Write) -> None:
    row = {"question_id": 1, "text": "Why?", "answer": "so"}
    with pytest.raises(DataError, match="two questions have the id 1"):
        folder_task("exact").load(own(write, row, row))


def test_a_row_without_an_answer_says_where_it_stands(write: Write) -> None:
    with pytest.raises(DataError, match=r"questions\.jsonl:1: no 'answer'"):
        folder_task("exact").load(own(write, {"question_id": 1, "text": "Why?"}))


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gone: no such folder"):
        folder_task("exact").load(tmp_path / "gone")
    with pytest.raises(DataError, match=r"no questions\.jsonl"):
        folder_task("exact").load(tmp_path)


def test_a_record_in_another_form_is_one_line(tmp_path: Path) -> None:
    def read(folder: Path) -> list[Question]:
        return [Question("1", None, {}["question"], "")]

    with pytest.raises(DataError, match=r"not in the form of odd .KeyError: 'question'"):
        Task("odd", read).load(tmp_path)


def test_missing_pictures_are_told_before_anything_is_asked(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    asked = [Question(str(n), tmp_path / f"{n}.jpg", "What?", "") for n in "abc"]
    check_pictures(asked[:1])
    with pytest.raises(DataError, match=r"b\.jpg: no such picture \(2 of 3 are missing\)"):
        check_pictures(asked)
