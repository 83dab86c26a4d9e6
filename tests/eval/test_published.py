"""Published answers of LLaVA-1.5-13B are worth what was published."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from lapilli.eval.answers import match
from lapilli.eval.runner import Answer, Report, report
from lapilli.eval.tasks import TASKS
from lapilli.eval.tasks.pope import PICTURES
from lapilli.messages import Question


def worth(name: str, questions: list[Question], path: Path) -> Report:
    texts = match(questions, path)
    return report(TASKS[name], questions, [Answer(key, text) for key, text in texts.items()])


def pope_answers(published: Path) -> Path:
    return published / "pope" / "answers" / "llava-v1.5-13b.jsonl"


def test_pope_gives_the_published_f1(published: Path) -> None:
    questions = TASKS["pope"].load(published / "pope")
    found = worth("pope", questions, pope_answers(published))
    assert len(questions) == 8910
    told = {name: round(found.figures[f"{name}: f1"].value, 1) for name in found.categories}
    assert told == {"random": 87.1, "popular": 86.2, "adversarial": 84.5}
    assert round(found.figures["f1"].value, 1) == 85.9
    assert found.unread == ()


def test_pope_is_matched_by_id_and_not_by_order(published: Path, tmp_path: Path) -> None:
    lines = pope_answers(published).read_text().splitlines(keepends=True)
    random.Random(0).shuffle(lines)
    shuffled = tmp_path / "answers.jsonl"
    shuffled.write_text("".join(lines))
    questions = TASKS["pope"].load(published / "pope")
    assert match(questions, shuffled) == match(questions, pope_answers(published))


def test_pope_asks_what_the_label_files_ask_where_there_is_nothing_else(
    published: Path, tmp_path: Path
) -> None:
    for path in (published / "pope").glob("coco_*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    questions = TASKS["pope"].load(tmp_path)
    assert len(questions) == 9000
    assert questions[0].image == tmp_path / PICTURES / "COCO_val2014_000000310196.jpg"
    assert questions[0].text.endswith("?\nAnswer the question using a single word or phrase.")
    # Other questions have LLaVA's ids: its answers must not be taken for answers to these.
    assert not match(questions, pope_answers(published))


def as_answers(result: Path, path: Path) -> Path:
    """The answers within a result of LLaVA's ScienceQA evaluation, as an answers file."""
    with path.open("w") as file:
        for rows in json.loads(result.read_text()).values():
            for row in rows:
                told = {"question_id": row["question_id"], "prompt": "", "text": row["pred"]}
                file.write(json.dumps(told) + "\n")
    return path


def test_scienceqa_gives_the_published_accuracy(published: Path, tmp_path: Path) -> None:
    folder = published / "scienceqa"
    result = folder / "answers" / "llava-v1.5-13b_output.jsonl"
    answers = as_answers(result, tmp_path / "answers.jsonl")
    questions = TASKS["scienceqa-img"].load(folder)
    found = worth("scienceqa-img", questions, answers)
    assert len(questions) == 2017
    assert round(found.figures["score"].value, 1) == 71.6
    everything = TASKS["scienceqa"].load(folder)
    found = worth("scienceqa", everything, answers)
    right = len(json.loads(result.read_text())["correct"])
    assert found.figures["score"].value == pytest.approx(100 * right / len(everything))


def test_scienceqa_reads_the_letters_that_were_published(published: Path) -> None:
    result = published / "scienceqa" / "answers" / "llava-v1.5-13b_output.jsonl"
    questions = {q.id: q for q in TASKS["scienceqa"].load(published / "scienceqa")}
    for is_right, kind in ((1.0, "correct"), (0.0, "incorrect")):
        for row in json.loads(result.read_text())[kind]:
            score = TASKS["scienceqa"].score
            assert score is not None
            value = score(questions[row["question_id"]], row["pred"])
            assert (value is None) == (
                row["parsed_ans"] not in questions[row["question_id"]].extra["letters"]
            )
            assert (value or 0.0) == is_right


@pytest.mark.parametrize(
    ("folder", "questions"),
    [
        ("MME", "llava_mme.jsonl"),
        ("textvqa", "llava_textvqa_val_v051_ocr.jsonl"),
        ("pope", "llava_pope_test.jsonl"),
    ],
)
def test_published_answers_are_found_for_published_questions(
    published: Path, folder: str, questions: str
) -> None:
    rows = [json.loads(line) for line in (published / folder / questions).read_text().splitlines()]
    asked = [
        Question(str(n), None, row["text"], "", extra={"file_id": row["question_id"]})
        for n, row in enumerate(rows)
    ]
    texts = match(asked, published / folder / "answers" / "llava-v1.5-13b.jsonl")
    assert len(texts) == len(rows)
