"""VQAv2, TextVQA, VizWiz and GQA: what is read, and what short answers are worth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lapilli.eval.answers import FILE_ID
from lapilli.eval.runner import Answer, report
from lapilli.eval.task import SHORT
from lapilli.eval.tasks import TASKS
from lapilli.eval.vqa_accuracy import accuracy, normalize

Write = Callable[[str, Any], Path]

# What the EvalAI answer processor of lmms_eval 0.7.3 makes of these.
NORMALIZED = [
    ("The dog's bowl.", "dog 's bowl"),
    ("1,000", "1000"),
    ("3.5 ft.", "3.5 ft"),
    ("black-and-white", "black and white"),
    ("black - white", "black white"),
    ("don't", "don't"),
    ("dont", "don't"),
    ("Two people", "2 people"),
    ("U.S.A.", "usa"),
    ("10:30 a.m.", "10:30 am"),
    ("1,000 $ / day", "1000 $ day"),
    ("a/b", "b"),
    ("None", "0"),
    ("cant's", "can't 's"),
    (".5", ".5"),
    ("St. Louis", "st louis"),
    ("shouldn'tve", "shouldn't've"),
    ("line\nbreak", "line break"),
]


@pytest.mark.parametrize(("text", "evened"), NORMALIZED)
def test_answers_are_evened_out_as_the_challenge_does(text: str, evened: str) -> None:
    assert normalize(text) == evened


@pytest.mark.parametrize(
    ("said_by", "worth"),
    # One of n who agree is left out n times of ten, the others leave all n.
    [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)],
)
def test_agreement_is_counted_leaving_one_person_out(said_by: int, worth: float) -> None:
    people = ["red"] * said_by + ["blue"] * (10 - said_by)
    assert accuracy(people, "Red.") == pytest.approx(worth)


def test_vqav2_is_scored_by_kind_of_answer(write: Write) -> None:
    asked = [
        {"question_id": 11, "image_id": 7, "question": "How many?"},
        {"question_id": 12, "image_id": 7, "question": "Is it?"},
    ]
    labels = [
        {"question_id": 12, "answer_type": "yes/no", "multiple_choice_answer": "yes",
         "answers": [{"answer": "yes"}] * 10},
        {"question_id": 11, "answer_type": "number", "multiple_choice_answer": "2",
         "answers": [{"answer": "2"}] * 3 + [{"answer": "3"}] * 7},
    ]  # fmt: skip
    write("v2_OpenEnded_mscoco_val2014_questions.json", {"questions": asked})
    folder = write("v2_mscoco_val2014_annotations.json", {"annotations": labels})
    questions = TASKS["vqav2"].load(folder)
    assert questions[0].image == folder / "val2014" / "COCO_val2014_000000000007.jpg"
    assert questions[0].text == "How many?" + SHORT
    found = report(TASKS["vqav2"], questions, [Answer("12", "No"), Answer("11", "two")])
    assert {name: kind.mean for name, kind in found.categories.items()} == {
        "number": pytest.approx(0.9),
        "yes/no": 0.0,
    }
    assert found.figures["score"].value == pytest.approx(45)


def textvqa(write: Write) -> Path:
    rows = [
        {"question_id": 34602 + n, "image_id": "003a", "question": text, "answers": ["nous"] * 10}
        for n, text in enumerate(("what is this?", "What brand?"))
    ]
    return write("TextVQA_0.5.1_val.json", {"data": rows})


def test_textvqa_takes_the_tokens_of_a_picture_from_the_file_that_has_them(write: Write) -> None:
    plain = TASKS["textvqa"].load(textvqa(write))
    assert [q.text for q in plain] == ["what is this?" + SHORT, "What brand?" + SHORT]
    longer = f"What brand?\nReference OCR token: NOUS, LES{SHORT}"
    row = {"question_id": "003a", "image": "003a.jpg", "text": longer, "category": "default"}
    folder = write("llava_textvqa_val_v051_ocr.jsonl", [row])
    questions = TASKS["textvqa"].load(folder)
    assert [q.text for q in questions] == ["what is this?" + SHORT, longer]
    assert questions[0].image == folder / "train_images" / "003a.jpg"
    assert questions[0].extra[FILE_ID] == "003a"


def test_vizwiz_is_told_when_not_to_answer(write: Write) -> None:
    row = {"image": "VizWiz_val_00000012.jpg", "question": "What is this?", "answerable": 0,
           "answer_type": "unanswerable", "answers": [{"answer": "unanswerable"}] * 10}  # fmt: skip
    folder = write("val.json", [row])
    (question,) = TASKS["vizwiz"].load(folder)
    assert question.id == "12"
    assert question.text == (
        "What is this?\nWhen the provided information is insufficient, respond with "
        f"'Unanswerable'.{SHORT}"
    )
    found = report(TASKS["vizwiz"], [question], [Answer("12", "Unanswerable")])
    assert found.figures["score"].value == 100


def test_prompts_are_those_that_llava_published(published: Path) -> None:
    for name in ("gqa/llava_gqa_testdev_balanced.jsonl", "vizwiz/llava_test.jsonl"):
        assert SHORT in (published / name).read_text().replace("\\n", "\n")


@pytest.mark.parametrize(
    ("answer", "worth"), [("Left", 1), ("left.", 1), ("to the left", 0), ("the left", 0), ("", 0)]
)
def test_gqa_is_exact_but_for_case_and_a_full_stop(write: Write, answer: str, worth: float) -> None:
    row = {"imageId": "n161313", "question": "Which side?", "answer": "left",
           "types": {"structural": "query"}}  # fmt: skip
    folder = write("testdev_balanced_questions.json", {"201307251": row})
    (question,) = TASKS["gqa"].load(folder)
    assert (question.id, question.category) == ("201307251", "query")
    assert question.image == folder / "images" / "n161313.jpg"
    found = report(TASKS["gqa"], [question], [Answer("201307251", answer)])
    assert found.figures["score"].value == 100 * worth
