"""Reading records: what the forms mean, and how faults are told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lapilli.data.records import Records
from lapilli.errors import DataError
from lapilli.messages import ImagePart, TextPart


def write(folder: Path, *rows: Any, name: str = "records.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def talk(*values: str) -> list[dict[str, str]]:
    speakers = ("human", "gpt")
    return [{"from": speakers[i % 2], "value": value} for i, value in enumerate(values)]


ROW = {"id": 7, "image": "a.png", "conversations": talk("<image>\nWhat is this?", "A star.")}


def test_a_record_becomes_a_sample(tmp_path: Path) -> None:
    row = ROW | {"kind": "what", "objects": [{"name": "star"}]}
    (sample,) = Records(write(tmp_path, row))
    picture = (tmp_path / "a.png").resolve()
    assert (sample.id, sample.kind, sample.group) == ("7", "what", "a.png")
    assert (sample.images, sample.objects) == ((picture,), ({"name": "star"},))
    asked, answered = sample.conversation
    assert (asked.role, answered.role) == ("user", "assistant")
    assert asked.parts == (ImagePart(picture), TextPart("What is this?"))
    assert answered.parts == (TextPart("A star."),)


def test_a_list_and_lines_read_the_same(tmp_path: Path) -> None:
    rows = [ROW, {"id": "b", "conversations": talk("Hello?", "Line\u2028separator.")}]
    lines = Records(write(tmp_path, *rows))
    (tmp_path / "records.json").write_text(json.dumps(rows))
    listed = Records(tmp_path / "records.json")
    assert len(lines) == len(listed) == 2
    assert list(lines) == list(listed)


def test_several_pictures_stand_at_their_marks(tmp_path: Path) -> None:
    turns = talk("<image> or <image>?", "The first.", "And <image>?", "No.")
    row = {"id": "x", "image": ["a.png", "b.png", "c.png"], "conversations": turns}
    (sample,) = Records(write(tmp_path, row))
    assert [path.name for path in sample.images] == ["a.png", "b.png", "c.png"]
    shown = [[Path(str(source)).name for source in m.images] for m in sample.conversation]
    assert shown == [["a.png", "b.png"], [], ["c.png"], []]


def test_running_text_has_no_conversation(tmp_path: Path) -> None:
    (sample,) = Records(write(tmp_path, {"id": "book", "text": "It was a night."}))
    assert (sample.text, sample.conversation) == ("It was a night.", ())


def test_what_is_null_counts_as_absent(tmp_path: Path) -> None:
    row = {"image": None, "objects": None, "text": None, "conversations": talk("Hi?", "Hello.")}
    (sample,) = Records(write(tmp_path, row))
    assert (sample.images, sample.objects, sample.text, sample.group) == ((), (), "", "")


def test_rows_share_a_group_by_name_or_picture_and_else_stand_alone(tmp_path: Path) -> None:
    lone = {"conversations": talk("Hi?", "Hello.")}
    records = Records(write(tmp_path, ROW, ROW, lone | {"group": "scene 1"}, lone, lone))
    groups = [records.group(index) for index in range(len(records))]
    assert groups[:3] == ["a.png", "a.png", "scene 1"]
    assert len(set(groups)) == 4


def test_pictures_may_lie_in_a_folder_of_their_own(tmp_path: Path) -> None:
    (sample,) = Records(write(tmp_path, ROW), tmp_path / "pictures")
    assert sample.images == ((tmp_path / "pictures/a.png").resolve(),)


@pytest.mark.parametrize("name", ["../a.png", "/etc/passwd", "pictures/../../a.png"])
def test_a_picture_outside_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"records.jsonl, row 0, id 7: image .* lies outside of"):
        Records(write(tmp_path, ROW | {"image": name}))[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": None}, "1 <image> marks, 0 images. Add an image or remove a mark."),
        ({"image": ["a", "b"]}, "1 <image> marks, 2 images. Add a mark or remove an image."),
        ({"image": {"path": "a"}}, "give a file name, or a list of them"),
        ({"image": [1]}, "give a file name, or a list of them"),
        ({"text": 5}, "text is 5; give words"),
        ({"conversations": "Hi"}, "conversations is not a list"),
        ({"image": None, "conversations": ["Hi"]}, "a turn is no object"),
        ({"image": None, "conversations": [{"from": "bot", "value": ""}]}, "unknown speaker 'bot'"),
        ({"image": None, "conversations": [{"from": ["x"]}]}, "unknown speaker ['x']; use human"),
        ({"image": None, "conversations": [{"value": "Hi"}]}, "unknown speaker None"),
    ],
)
def test_a_fault_in_a_record_is_told_with_its_place(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    records = Records(write(tmp_path, ROW, ROW | change))
    assert records[0].id == "7"
    with pytest.raises(DataError) as caught:
        records[1]
    assert str(caught.value).startswith("records.jsonl, row 1, id 7: ")
    assert message in str(caught.value)


@pytest.mark.parametrize("line", [b"{", b"\xff\xfe\xfd", b"[1]", b'"text"'])
def test_a_damaged_line_is_told_by_its_number_and_harms_no_other(
    tmp_path: Path, line: bytes
) -> None:
    path = write(tmp_path, ROW)
    path.write_bytes(path.read_bytes() + line + b"\n" + path.read_bytes())
    records = Records(path)
    assert records[0] == records[2]
    with pytest.raises(DataError, match=r"records.jsonl, row 1: "):
        records[1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.jsonl", "\n \n", "no records"),
        ("r.json", "[]", "no records"),
        ("r.json", "[", "not JSON"),
        ("r.json", '{"id": 1}', "holds a dict, not a list of records"),
    ],
)
def test_a_file_without_records_is_refused(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        Records(tmp_path / name)


@pytest.mark.parametrize("name", ["gone.jsonl", "."])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError) as caught:
        Records(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: cannot be read (")
