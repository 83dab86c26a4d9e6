"""POPE and MME: answers with yes or no."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lapilli.errors import DataError
from lapilli.eval.answers import match
from lapilli.eval.runner import Answer, report
from lapilli.eval.task import SHORT
from lapilli.eval.tasks import TASKS
from lapilli.eval.tasks.mme import read_yes_no
from lapilli.eval.tasks.pope import says_yes

Write = Callable[[str, Any], Path]


@pytest.mark.parametrize(
    ("answer", "is_yes"),
    [
        ("Yes", True),
        ("No", False),
        ("No, there is none.", False),
        ("There is not a dog.", False),
        ("There are no dogs.", False),
        ("Yes. No doubt.", True),
        ("Nothing", True),
        ("", True),
    ],
)
def test_pope_hears_no_in_the_first_sentence_alone(answer: str, is_yes: bool) -> None:
    assert says_yes(answer) is is_yes


def pope(write: Write) -> Path:
    for split in ("random", "popular", "adversarial"):
        rows = [
            {"question_id": n, "image": "a.jpg", "text": f"Is there a {name} in the image?",
             "label": label}
            for n, (name, label) in enumerate(
                [("cat", "yes"), ("dog", "yes"), ("car", "no"), ("cup", "no"), ("bed", "no")], 1
            )
        ]  # fmt: skip
        folder = write(f"coco_pope_{split}.json", "")
        write(f"coco_pope_{split}.jsonl", rows)
        (folder / f"coco_pope_{split}.jsonl").rename(folder / f"coco_pope_{split}.json")
    return folder


def test_pope_counts_hits_and_misses(write: Write) -> None:
    questions = TASKS["pope"].load(pope(write))
    said = {"1": "Yes", "2": "No", "3": "Yes", "4": "No", "5": "No"}
    answers = [Answer(q.id, said[q.id.partition("/")[2]]) for q in questions]
    found = report(TASKS["pope"], questions, answers)
    for split in ("random", "popular", "adversarial"):
        figures = {name: found.figures[f"{split}: {name}"].value for name in
                   ("f1", "accuracy", "precision", "recall", "yes")}  # fmt: skip
        assert figures == {
            "f1": pytest.approx(50),
            "accuracy": pytest.approx(60),
            "precision": pytest.approx(50),
            "recall": pytest.approx(50),
            "yes": pytest.approx(40),
        }
    assert found.figures["f1"].value == pytest.approx(50)
    assert found.figures["f1"].low < 50 < found.figures["f1"].high
    assert found.categories["random"].mean == pytest.approx(0.6)


def test_pope_names_the_file_that_is_missing_and_where_it_is(write: Write) -> None:
    folder = pope(write)
    (folder / "coco_pope_popular.json").unlink()
    with pytest.raises(DataError, match=r"no coco_pope_popular.json.*Get it from https://github"):
        TASKS["pope"].load(folder)


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        ("Yes", "yes"), ("no.", "no"), ("Y", "yes"), ("n", "no"), ("Yes, it is.", "yes"),
        ("\n yes", "yes"), ("Not at all", "no"), ("It is not", None), ("Church", None), ("", None),
    ],
)  # fmt: skip
def test_mme_reads_yes_and_no_in_the_first_letters(answer: str, read: str | None) -> None:
    assert read_yes_no(answer) == read


def mme(write: Write) -> Path:
    ending = "Please answer yes or no."
    write("existence/1.txt", f"A dog? {ending}\tYes\nA cat? {ending}\tNo\n")
    write("existence/2.txt", f"A dog? {ending}\tYes\nA cat? {ending}\tNo\n")
    write("existence/1.jpg", "")
    write("code_reasoning/1.txt", f"C? {ending}\tYes\nPython? {ending}\tNo\n")
    write("code_reasoning/1.png", "")
    write("artwork/images/9.jpg", "")
    return write("artwork/questions_answers_YN/9.txt", f"Old? {ending}\tYes\nNew? {ending}\tNo")


def test_mme_counts_questions_and_pictures(write: Write) -> None:
    questions = TASKS["mme"].load(mme(write))
    assert [str(q.image).partition("existence")[2] for q in questions[:2]] == ["/1.jpg"] * 2
    assert questions[-2].id == "code_reasoning/1.png#1"
    assert questions[-2].text == "C?" + SHORT
    assert questions[4].extra == {"file_id": "artwork/images/9.jpg"}
    said = {"existence/1.jpg#1": "Yes", "existence/1.jpg#2": "no", "existence/2.jpg#1": "Yes",
            "existence/2.jpg#2": "Yes", "code_reasoning/1.png#1": "Yes",
            "code_reasoning/1.png#2": "No.", "artwork/images/9.jpg#1": "Rembrandt",
            "artwork/images/9.jpg#2": "no"}  # fmt: skip
    found = report(TASKS["mme"], questions, [Answer(key, text) for key, text in said.items()])
    values = {name: figure.value for name, figure in found.figures.items()}
    assert values == {
        "perception": pytest.approx(75 + 50 + 50 + 0),
        "cognition": pytest.approx(200),
        "existence": pytest.approx(75 + 50),
        "artwork": pytest.approx(50 + 0),
        "code_reasoning": pytest.approx(200),
        "of those read": pytest.approx(100 * 6 / 7),
    }
    assert found.unread == ("artwork/images/9.jpg#1",)
    assert found.categories["artwork"].unread == 1


def test_mme_tells_the_two_questions_of_a_picture_apart_by_their_words(write: Write) -> None:
    questions = TASKS["mme"].load(mme(write))
    rows = [{"question_id": "existence/1.jpg", "prompt": text + SHORT, "text": answer}
            for text, answer in (("A cat?", "no"), ("A dog?", "yes"))]  # fmt: skip
    path = write("answers.jsonl", rows) / "answers.jsonl"
    assert match(questions, path) == {"existence/1.jpg#1": "yes", "existence/1.jpg#2": "no"}


def test_mme_without_its_folders_says_where_they_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no existence, count.*Get it from https"):
        TASKS["mme"].load(tmp_path)


def test_a_line_of_mme_without_an_answer_is_named(write: Write) -> None:
    folder = write("existence/1.txt", "A dog?\n")
    with pytest.raises(DataError, match=r"1\.txt: line 1 has no tab"):
        TASKS["mme"].load(folder)
