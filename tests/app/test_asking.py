from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lapilli.app import asking
from lapilli.app.cli.main import main
from lapilli.errors import ImageError
from lapilli.messages import Conversation, Piece, Sampling

Run = Any


class FakeAssistant:
    """Says which question was asked and how many pictures came with it."""

    asked: list[str]

    def __init__(self, model: str | None = None, **_: Any) -> None:
        self.engine = self

    def respond(self, conversations: Sequence[Conversation], sampling: Sampling) -> Iterator[Piece]:
        for index, (message,) in enumerate(conversations):
            if message.text == "break":
                raise ImageError("b.png: damaged picture. Save it again.")
            FakeAssistant.asked.append(message.text)
            yield Piece(index, f"{message.text} {len(message.images)}")


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeAssistant.asked = []
    monkeypatch.setattr(asking, "MultimodalAssistant", FakeAssistant)


def write(folder: Path, *texts: str, image: Any = "a.png") -> Path:
    Image.new("RGB", (4, 4)).save(folder / "a.png")
    path = folder / "questions.jsonl"
    rows = [{"question_id": i, "image": image, "text": text} for i, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def ask(*arguments: object) -> int:
    try:
        main(["ask", *map(str, arguments)])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def answers(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_answers_have_the_form_of_llavas_own_evaluation(tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    assert (
        ask("--questions", write(tmp_path, "one", "two", image=["a.png", "a.png"]), "--out", out)
        == 0
    )
    rows = answers(out)
    assert [row["text"] for row in rows] == ["one 2", "two 2"]
    assert [(row["question_id"], row["prompt"]) for row in rows] == [(0, "one"), (1, "two")]
    assert all({"answer_id", "model_id", "metadata"} < row.keys() for row in rows)


def test_a_second_call_asks_only_what_is_missing(tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    ask("--questions", write(tmp_path, "one", "two"), "--out", out)
    with out.open("a") as file:
        file.write('{"question_id": "2", "te')  # a kill cut it off
    assert ask("--questions", write(tmp_path, "one", "two", "three"), "--out", out) == 0
    assert FakeAssistant.asked == ["one", "two", "three"]
    assert len(answers(out)) == 3


def test_pictures_may_lie_elsewhere(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (write(tmp_path, "one").parent / "a.png").rename(pictures / "a.png")
    call = ("--questions", tmp_path / "questions.jsonl", "--out", tmp_path / "o.jsonl")
    assert ask(*call, "--images", pictures) == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no question"),
        ('{"question_id": 1}\n', "no 'text'"),
        ('{"question_id": 1, "text": "?"}\n' * 2, "question_id 1 stands there twice"),
        ('{"question_id": 1, "text": "?", "image": "../a.png"}\n', "lies outside the folder"),
        ("no json\n", "questions.jsonl"),
    ],
)
def test_bad_questions_are_one_line_and_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, message: str
) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text(content)
    assert ask("--questions", path, "--out", tmp_path / "out.jsonl") == 1
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--questions", "q.jsonl"), "--questions needs --out"),
        (("--questions", "q.jsonl", "--out", "o.jsonl", "a.png", "what?"), "stands alone"),
        (("a.png", "what?", "--out", "o.jsonl"), "--out and --images go with --questions"),
    ],
)
def test_wrong_calls_are_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert ask(*arguments) == 2
    assert message in capsys.readouterr().err


def test_answers_that_came_before_a_failure_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lapilli.eval.runner.CHUNK", 1)
    out = tmp_path / "answers.jsonl"
    assert ask("--questions", write(tmp_path, "one", "break", "three"), "--out", out) == 1
    assert [row["text"] for row in answers(out)] == ["one 1"]
