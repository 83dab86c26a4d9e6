"""MM-Vet and LLaVA-Bench: what a grader is asked, and what is made of its reply."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lapilli.errors import DataError
from lapilli.eval.runner import Answer, grading_questions, report
from lapilli.eval.tasks import TASKS
from lapilli.eval.tasks.graded import read_marks, score_share
from lapilli.messages import Question

Write = Callable[[str, Any], Path]


@pytest.mark.parametrize(
    ("reply", "grade"),
    [
        ("0.5", 0.5), ("Grade: 0.8.", 0.8), ("1", 1.0), ("0", 0.0), ("1.5", None), ("-1", None),
        ("seven", None), ("", None), ("80%", None),
    ],
)  # fmt: skip
def test_a_share_is_between_nothing_and_all(reply: str, grade: float | None) -> None:
    assert score_share(Question("1", None, "", ""), reply) == grade


@pytest.mark.parametrize(
    ("reply", "marks"),
    [
        ("8 7\nBecause of 3 reasons.", (8, 7)), ("8.5, 10", (8.5, 10)), ("\n9 9", (9, 9)),
        ("8", None), ("8 7 6", None), ("0 7", None), ("8 11", None), ("eight seven", None),
    ],
)  # fmt: skip
def test_marks_are_the_two_numbers_of_the_first_line(
    reply: str, marks: tuple[float, float] | None
) -> None:
    assert read_marks(reply) == marks


def test_mm_vet_is_told_by_capability(write: Write) -> None:
    rows = {
        f"v1_{n}": {"imagename": f"v1_{n}.png", "question": "What?", "answer": "x",
                    "capability": needs}
        for n, needs in enumerate((["ocr", "math"], ["ocr"], ["rec"]))
    }  # fmt: skip
    folder = write("mm-vet.json", rows)
    task = TASKS["mm-vet"]
    questions = task.load(folder)
    assert questions[0].image == folder / "images" / "v1_0.png"
    asked = grading_questions(task, questions, [Answer(q.id, "I say y") for q in questions])
    assert [q.id for q in asked] == ["v1_0", "v1_1", "v1_2"]
    assert "True answer: x\nAnswer to grade: I say y" in asked[0].text
    assert asked[0].images == ()
    replies = [Answer("v1_0", "0.4"), Answer("v1_1", "1.0"), Answer("v1_2", "I cannot")]
    found = report(task, questions, replies)
    assert {name: figure.value for name, figure in found.figures.items()} == pytest.approx(
        {"total": 70, "math": 40, "ocr": 70, "rec": 0}
    )
    assert found.unread == ("v1_2",)
    assert (found.categories["rec"].count, found.categories["rec"].unread) == (0, 1)


def wild(write: Write) -> Path:
    write("context.jsonl", [{"id": 1, "image": "001.jpg", "caption": "A volcano."}])
    asked = [
        {"question_id": n, "image": "001.jpg", "text": "Where?", "category": kind}
        for n, kind in enumerate(("conv", "conv", "detail"))
    ]
    write("answers_gpt4.jsonl", [{"question_id": n, "text": f"There {n}."} for n in range(3)])
    return write("questions.jsonl", asked)


def test_llava_bench_is_relative_to_the_references(write: Write) -> None:
    folder = wild(write)
    task = TASKS["llava-bench-wild"]
    questions = task.load(folder)
    asked = grading_questions(task, questions, [Answer(q.id, "Here.") for q in questions])
    assert "A volcano." in asked[0].text
    assert asked[0].text.index("There 0.") < asked[0].text.index("Here.")
    replies = [Answer("0", "10 5"), Answer("1", "Both are good."), Answer("2", "8 8")]
    found = report(task, questions, replies)
    assert found.figures["relative"].value == pytest.approx(100 * 13 / 18)
    assert found.figures["conv"].value == pytest.approx(50)
    assert found.figures["detail"].value == pytest.approx(100)
    assert found.unread == ("1",)
    assert found.categories["conv"].mean == pytest.approx(0.5)
    assert "of those read" not in found.figures


def test_llava_bench_on_coco_shows_captions_and_boxes_to_the_grader(write: Write) -> None:
    thing = {"category": "dog", "bbox": [0.1, 0.2, 0.3, 0.4]}
    picture = {"id": "1", "image": "000000000001.jpg", "captions": ["A dog."], "instances": [thing]}
    write("caps_boxes_coco2014_val_80.jsonl", [picture])
    write("qa90_gpt4_answer.jsonl", [{"question_id": 0, "text": "A dog."}])
    row = {"question_id": 0, "image": picture["image"], "text": "What?", "category": "conv"}
    folder = write("qa90_questions.jsonl", [row])
    (question,) = TASKS["llava-bench-coco"].load(folder)
    assert question.image == folder / "val2014" / "COCO_val2014_000000000001.jpg"
    assert question.extra["context"] == "A dog.\ndog: [0.1, 0.2, 0.3, 0.4]"


def test_an_answer_that_is_missing_is_not_graded(write: Write) -> None:
    task = TASKS["llava-bench-wild"]
    with pytest.raises(DataError, match="question 0: no answer"):
        grading_questions(task, task.load(wild(write)), [])
