"""ChartQA, DocVQA, RefCOCO and NLVR."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lapilli.errors import DataError
from lapilli.eval.runner import Answer, report
from lapilli.eval.tasks import TASKS
from lapilli.eval.tasks.chartqa import relaxed
from lapilli.eval.tasks.docvqa import anls
from lapilli.eval.tasks.refcoco import out_of_square

Write = Callable[[str, Any], Path]


@pytest.mark.parametrize(
    ("reference", "answer", "is_right"),
    # As `relaxed_correctness` of lmms_eval 0.7.3 says.
    [
        ("5.2", "5", True), ("6", "5", False), ("0.5", "50%", True), ("12", "12%", False),
        ("yes", "Yes", True), ("10", "10.5", True), ("10", "9.4", False), ("0", "0", True),
        ("0", "0.01", False), ("1000", "1,000", False), ("-10", "-9.6", True),
    ],
)  # fmt: skip
def test_numbers_of_charts_may_be_a_twentieth_off(
    reference: str, answer: str, is_right: bool
) -> None:
    assert relaxed(reference, answer) == is_right


def test_chartqa_is_told_by_who_asks(write: Write) -> None:
    write("test/test_human.json", [{"imgname": "1.png", "query": "How many?", "label": "4"}])
    folder = write("test/test_augmented.json", [{"imgname": "2.png", "query": "?", "label": "No"}])
    questions = TASKS["chartqa"].load(folder)
    assert questions[0].image == folder / "test" / "png" / "1.png"
    answers = [Answer("human/1", "4.1"), Answer("augmented/1", "yes")]
    found = report(TASKS["chartqa"], questions, answers)
    assert {name: kind.mean for name, kind in found.categories.items()} == {
        "human": 1,
        "augmented": 0,
    }
    assert found.figures["score"].value == 50


@pytest.mark.parametrize(
    ("truths", "answer", "worth"),
    [
        (["Coca Cola"], "coca  cola", 1),
        (["kitten"], "sitting", 1 - 3 / 7),
        (["abcd", "abxx"], "abcx", 0.75),
        (["abcd"], "abxy", 0.5),
        (["abcd"], "axyz", 0),
        (["abc"], "", 0),
    ],
)
def test_anls_is_the_share_of_letters_that_stay(
    truths: list[str], answer: str, worth: float
) -> None:
    assert anls(truths, answer) == pytest.approx(worth)


def test_docvqa_is_read(write: Write) -> None:
    row = {"questionId": 49153, "question": "What year?", "question_types": ["handwritten"],
           "image": "documents/a_1.png", "answers": ["1999"]}  # fmt: skip
    folder = write("val_v1.0_withQT.json", {"data": [row]})
    (question,) = TASKS["docvqa"].load(folder)
    assert (question.id, question.category) == ("49153", "handwritten")
    assert question.image == folder / "documents" / "a_1.png"
    found = report(TASKS["docvqa"], [question], [Answer("49153", "1998")])
    assert found.figures["score"].value == 75


def refcoco(write: Write) -> Path:
    image = {"id": 5, "file_name": "COCO_train2014_000000000009.jpg", "width": 200, "height": 100,
             "caption": "the left dog"}  # fmt: skip
    box = {"image_id": 5, "bbox": [20, 10, 80, 50]}
    for split in ("val", "testB"):
        content = {"images": [image], "annotations": [box]}
        folder = write(f"finetune_refcoco_{split}.json", content)
    return folder


def test_boxes_of_phrases_are_fractions_of_the_picture(write: Write) -> None:
    questions = TASKS["refcoco"].load(refcoco(write))
    assert questions[0].extra["box"] == [0.1, 0.1, 0.5, 0.6]
    assert questions[0].text == (
        "Please provide the bounding box coordinate of the region this sentence describes: "
        "the left dog."
    )
    answers = [Answer("val/5", "[0.10, 0.10, 0.50, 0.60]"), Answer("testB/5", "there")]
    found = report(TASKS["refcoco"], questions, answers)
    assert (found.figures["val"].value, found.figures["testB"].value) == (100, 0)
    assert found.unread == ("testB/5",)


def test_boxes_in_the_padded_square_are_those_of_llava(write: Write) -> None:
    # 200 x 100 lies between a quarter and three quarters of its square's height.
    assert out_of_square((0.1, 0.3, 0.5, 0.55), 200, 100) == pytest.approx((0.1, 0.1, 0.5, 0.6))
    assert out_of_square((0.3, 0.1, 0.55, 0.5), 100, 200) == pytest.approx((0.1, 0.1, 0.6, 0.5))
    task = TASKS["refcoco-square"]
    (question, _) = questions = task.load(refcoco(write))
    answers = [Answer(q.id, "[0.1, 0.3, 0.5, 0.5]") for q in questions]
    assert report(task, questions, answers).figures["val"].value == 100
    score = TASKS["refcoco"].score
    assert score is not None
    assert score(question, "[0.1, 0.3, 0.5, 0.5]") == 0


def test_pickles_of_refcoco_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "refs(unc).p").touch()
    with pytest.raises(DataError, match=r"no finetune_refcoco\+_val\.json.*MDETR"):
        TASKS["refcoco+"].load(tmp_path)


def test_nlvr_of_the_shared_data_is_read(shared_data: Path) -> None:
    questions = TASKS["nlvr"].load(shared_data / "nlvr")
    assert len(questions) == 989
    assert all(Path(str(q.image)).is_file() for q in questions)
    right = report(TASKS["nlvr"], questions, [Answer(q.id, q.answer) for q in questions])
    assert right.figures["score"].value == 100


@pytest.mark.parametrize(
    ("answer", "worth"),
    [("True", 1), ("Yes, it is.", 1), ("false", 0), ("Not true", 0), ("?", None)],
)
def test_a_sentence_is_true_or_not(write: Write, answer: str, worth: float | None) -> None:
    row = {"identifier": "850-0", "sentence": "There is a box", "label": "true", "directory": "3"}
    folder = write("dev.jsonl", [row])
    (question,) = TASKS["nlvr"].load(folder)
    assert question.image == folder / "images" / "3" / "dev-850-0-0.png"
    score = TASKS["nlvr"].score
    assert score is not None
    assert score(question, answer) == worth


def test_nlvr2_shows_left_before_right(write: Write) -> None:
    row = {"identifier": "dev-850-0-1", "sentence": "Two dogs.", "label": "False"}
    write("dev.jsonl", [row])
    folder = write("x", "")
    (folder / "dev.jsonl").rename(folder / "dev.json")
    (question,) = TASKS["nlvr2"].load(folder)
    names = [Path(str(source)).name for source in question.images]
    assert names == ["dev-850-0-img0.png", "dev-850-0-img1.png"]
    assert question.answer == "false"
