"""`lapilli eval` of benchmarks: from files alone, and with a model, which is a fake."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import lapilli.app.benchmarks as benchmarks
from lapilli.app.benchmarks import eval_benchmarks
from lapilli.errors import ConfigError, DataError
from lapilli.eval.tasks import TASKS
from lapilli.messages import Conversation, Piece, Sampling


class FakeAssistant:
    """Answers every question with its last word; a grader with its own name."""

    made: list[FakeAssistant]

    def __init__(self, model: str | Path | None = None, **_: Any) -> None:
        self.model, self.engine = model, self
        self.asked: list[str] = []
        FakeAssistant.made.append(self)

    def respond(self, conversations: Sequence[Conversation], sampling: Sampling) -> Iterator[Piece]:
        for index, (message,) in enumerate(conversations):
            self.asked.append(message.text)
            yield Piece(index, message.text.split()[-1])


@pytest.fixture(autouse=True)
def assistant(monkeypatch: pytest.MonkeyPatch) -> type[FakeAssistant]:
    FakeAssistant.made = []
    monkeypatch.setattr(benchmarks, "MultimodalAssistant", FakeAssistant)
    return FakeAssistant


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    Image.new("RGB", (8, 8), "red").save(folder / "a.png")
    rows = [
        {"question_id": n, "image": "a.png", "text": f"Say {word}", "answer": "yes"}
        | {"category": word}
        for n, word in enumerate(("yes", "no", "yes", "perhaps"))
    ]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write_answers(path: Path, *texts: str) -> Path:
    rows = [{"question_id": n, "prompt": "", "text": t, "model_id": "x"}
            for n, t in enumerate(texts)]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in reversed(rows)))
    return path


def test_answers_are_scored_without_a_model(
    assistant: type[FakeAssistant], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_answers(tmp_path / "answers.jsonl", "yes", "yes", "no", "perhaps")
    told = eval_benchmarks(
        ["folder"], data=data, answers=path, is_asked=False, scorer="yes-no",
        json_path=tmp_path / "scores.json",
    )  # fmt: skip
    assert not assistant.made
    assert json.loads((tmp_path / "scores.json").read_text()) == told
    found = told["tasks"]["folder"]
    assert found["figures"]["score"]["value"] == 50
    assert found["figures"]["of those read"]["value"] == pytest.approx(200 / 3)
    assert found["unread"] == ["3"]
    assert found["categories"]["yes"]["mean"] == 0.5
    assert found["recipe"]["model"] == "x"
    assert found["recipe"]["data"]["questions"] == 4
    assert "torch" in told["versions"]
    out, err = capsys.readouterr()
    assert "folder, 4 questions, x" in out
    assert "1 answers, counted as wrong" in out
    assert err == ""


def test_what_is_missing_in_a_file_is_told_and_not_asked(
    assistant: type[FakeAssistant], data: Path, tmp_path: Path
) -> None:
    path = write_answers(tmp_path / "answers.jsonl", "yes", "yes")
    with pytest.raises(DataError, match=r"question 2: no answer \(2 of 4 have none\)"):
        eval_benchmarks(["folder"], data=data, answers=path, is_asked=False, scorer="exact")
    with pytest.raises(DataError, match="no such file of answers"):
        eval_benchmarks(
            ["folder"], data=data, answers=tmp_path / "gone", is_asked=False, scorer="exact"
        )
    assert not assistant.made


def test_a_second_call_asks_nothing_and_tells_the_same(
    assistant: type[FakeAssistant], data: Path, tmp_path: Path
) -> None:
    def measure() -> dict[str, Any]:
        path = tmp_path / "scores.json"
        return eval_benchmarks(["folder"], data=data, model="m", scorer="exact", json_path=path)

    first = measure()
    (made,) = assistant.made
    assert made.asked == ["Say yes", "Say no", "Say yes", "Say perhaps"]
    recipe = first["tasks"]["folder"]["recipe"]
    kept = tmp_path / "scores.folder.jsonl"
    assert recipe["answers"] == str(kept)
    assert (recipe["model"], recipe["temperature"]) == ("m", 0.0)
    assert measure() == first
    assert len(assistant.made) == 1
    lines = kept.read_text().splitlines(keepends=True)
    kept.write_text("".join(lines[:1] + lines[2:]))
    assert measure() == first
    assert assistant.made[1].asked == ["Say no"]


def test_several_benchmarks_have_a_folder_each(
    assistant: type[FakeAssistant], data: Path, tmp_path: Path
) -> None:
    both = tmp_path / "both"
    for name, file in (("gqa", "testdev_balanced_questions.json"), ("vizwiz", "val.json")):
        (both / name).mkdir(parents=True)
        row = {"imageId": "1", "question": "q", "answer": "a"}
        other = {"image": "val_1.jpg", "question": "q", "answer_type": "other",
                 "answers": [{"answer": "a"}]}  # fmt: skip
        (both / name / file).write_text(json.dumps({"1": row} if name == "gqa" else [other]))
        write_answers(both / f"{name}.jsonl", "", "a")
    told = eval_benchmarks(["gqa", "vizwiz"], data=both, answers=both, is_asked=False)
    assert list(told["tasks"]) == ["gqa", "vizwiz"]
    assert told["tasks"]["gqa"]["figures"]["score"]["value"] == 100


def test_a_missing_picture_is_told_before_a_model_is_loaded(
    assistant: type[FakeAssistant], data: Path
) -> None:
    (data / "a.png").unlink()
    with pytest.raises(DataError, match="no such picture"):
        eval_benchmarks(["folder"], data=data, model="m", scorer="exact")
    assert not assistant.made


def test_answers_are_graded_by_another_model_once(
    assistant: type[FakeAssistant], tmp_path: Path
) -> None:
    row = {"imagename": "a.png", "question": "What?", "answer": "x", "capability": ["ocr"]}
    (tmp_path / "mm-vet.json").write_text(json.dumps({"v1_0": row}))
    answers = tmp_path / "answers.jsonl"
    answers.write_text(json.dumps({"question_id": "v1_0", "text": "y"}) + "\n")
    with pytest.raises(DataError, match="mm-vet: its answers are graded; add --grader or --grades"):
        eval_benchmarks(["mm-vet"], data=tmp_path, answers=answers, is_asked=False)
    grades = tmp_path / "grades.jsonl"
    for _ in range(2):
        told = eval_benchmarks(
            ["mm-vet"],
            data=tmp_path,
            answers=answers,
            is_asked=False,
            grader="judge",
            grades=grades,
        )
    (judge,) = assistant.made
    assert judge.model == "judge"
    assert "Answer to grade: y" in judge.asked[0]
    found = told["tasks"]["mm-vet"]
    assert found["unread"] == ["v1_0"]  # the fake ends in "alone.", which is no grade
    assert found["recipe"]["grades"]["model"] == "judge"
    row = json.loads(grades.read_text())
    grades.write_text(json.dumps(row | {"text": "0.5"}) + "\n")
    told = eval_benchmarks(
        ["mm-vet"], data=tmp_path, answers=answers, is_asked=False, grades=grades
    )
    assert told["tasks"]["mm-vet"]["figures"]["total"]["value"] == 50


def test_the_gallery_shows_single_answers(data: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    eval_benchmarks(["folder"], data=data, model="m", scorer="exact", gallery_path=page)
    assert page.read_text().count("<h3>Wrong: 1</h3>") == 2


def test_unknown_scorers_and_benchmarks_are_refused_with_what_there_is(data: Path) -> None:
    with pytest.raises(ConfigError, match="scorer None is unknown; use --scorer exact, vqa"):
        eval_benchmarks(["folder"], data=data)
    with pytest.raises(ConfigError, match="benchmark 'frob' is unknown; use folder, drawn, pope"):
        eval_benchmarks(["frob"], data=data)


def test_benchmarks_stand_under_their_own_names() -> None:
    assert all(task.name == name for name, task in TASKS.items())
