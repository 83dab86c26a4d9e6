"""Questions with options: ScienceQA, MMBench, SEED-Bench, MMMU, AI2D."""

from __future__ import annotations

import base64
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lapilli.errors import DataError
from lapilli.eval.options import read_letter
from lapilli.eval.runner import Answer, report
from lapilli.eval.task import LETTER, SHORT
from lapilli.eval.tasks import TASKS, scienceqa
from lapilli.eval.tasks.mmmu import holds

Write = Callable[[str, Any], Path]

OPTIONS = {"A": "a cat", "B": "a dog", "C": "the cat's bowl", "D": "none"}


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"), ("B.", "B"), ("(B)", "B"), ("B) a dog", "B"), ("B: a dog", "B"), (" C\n", "C"),
        ("The answer is B.", "B"), ("the correct option is (D)", "D"), ("a dog", "B"),
        ("A dog.", "B"), ("I see a dog there.", "B"), ("none", "D"),
        ("E", None), ("a cat or a dog", None), ("", None), ("A bird", None), ("doggy", None),
    ],
)  # fmt: skip
def test_a_letter_is_read_where_one_was_chosen(answer: str, letter: str | None) -> None:
    assert read_letter(answer, OPTIONS) == letter


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"), ("B. yes", "B"), ("The answer is C.", "C"), ("Well. The answer is A. So", "A"),
        ("The answer is A. The answer is B.", None), ("B is it.", None), ("D", None), ("", None),
        ("cove", None),
    ],
)  # fmt: skip
def test_scienceqa_reads_three_forms_alone(answer: str, letter: str | None) -> None:
    assert scienceqa.read_letter(answer, "ABC") == letter


def test_scienceqa_is_read_from_the_sets_own_files(write: Write) -> None:
    problem = {"question": "Which?", "choices": ["yes", "no"], "answer": 1, "hint": "Look."}
    write(
        "problems.json", {"7": {**problem, "image": "image.png"}, "8": {**problem, "image": None}}
    )
    folder = write("pid_splits.json", {"test": ["7", "8"]})
    first, second = TASKS["scienceqa"].load(folder)
    assert first.image == folder / "test" / "7" / "image.png"
    assert first.text == "Context: Look.\nWhich?\nA. yes\nB. no" + LETTER
    assert (first.answer, second.image) == ("B", None)
    assert [q.id for q in TASKS["scienceqa-img"].load(folder)] == ["7"]


def mmbench(write: Write, **changes: str) -> Path:
    picture = base64.b64encode(b"picture of forty letters at the very least").decode()
    heads = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image"]
    first = ["241", "Which?", "Look.", "red", "green", "blue", "", "C", "color", picture]
    second = ["252", "How many?", "", "1", "2", "", "", "A", "count", "241"]
    again = ["1000241", "Which?", "Look.", "green", "blue", "red", "", "B", "color", "241"]
    rows = [dict(zip(heads, cells, strict=True)) for cells in (first, second, again)]
    rows[0] |= changes
    lines = ["\t".join(heads), *("\t".join(row.values()) for row in rows)]
    return write("mmbench_dev_20230712.tsv", "\n".join(lines))


def test_mmbench_is_read_with_its_pictures(write: Write) -> None:
    first, second = TASKS["mmbench-en"].load(mmbench(write))
    assert first.text == "Look.\nWhich?\nA. red\nB. green\nC. blue" + LETTER
    assert first.image == second.image == b"picture of forty letters at the very least"
    assert (second.text, second.answer) == ("How many?\nA. 1\nB. 2" + LETTER, "A")


def test_circular_mmbench_wants_every_rotation(write: Write) -> None:
    task = TASKS["mmbench-en-circular"]
    questions = task.load(mmbench(write))
    told = [(q.id, q.answer) for q in questions]
    assert told == [("241/0", "C"), ("241/1", "B"), ("241/2", "A"), ("252/0", "A"), ("252/1", "B")]
    assert "A. green\nB. blue\nC. red" in questions[1].text
    always_a = report(task, questions, [Answer(q.id, "A") for q in questions])
    assert always_a.figures["circular"].value == 0
    assert always_a.figures["single"].value == pytest.approx(40)
    right = report(task, questions, [Answer(q.id, q.answer) for q in questions])
    assert right.figures["circular"].value == 100


def test_chinese_mmbench_asks_in_chinese(write: Write) -> None:
    folder = mmbench(write)
    (folder / "mmbench_dev_20230712.tsv").rename(folder / "mmbench_dev_cn_20231003.tsv")
    assert TASKS["mmbench-cn"].load(folder)[0].text.endswith("\n请直接回答选项字母。")
    with pytest.raises(DataError, match=r"no mmbench_dev_20230712\.tsv or MMBench_DEV_EN\.tsv"):
        TASKS["mmbench-en"].load(folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"answer": ""}, "row 1: no answer among"), ({"image": "%" * 40}, "row 1: damaged picture")],
)
def test_a_bad_row_of_mmbench_is_named(write: Write, changes: dict[str, str], said: str) -> None:
    with pytest.raises(DataError, match=said):
        TASKS["mmbench-en"].load(mmbench(write, **changes))


def test_seed_is_scored_by_type_and_leaves_videos_out(write: Write) -> None:
    row = {f"choice_{letter}": letter for letter in "abcd"} | {"question": "Which?"}
    rows = [
        row | {"question_id": 1, "data_id": "1_2", "data_type": "image", "answer": "B",
               "question_type_id": 1},
        row | {"question_id": 2, "data_id": "v", "data_type": "video", "answer": "B",
               "question_type_id": 1},
    ]  # fmt: skip
    folder = write("SEED-Bench.json", {"questions": rows, "question_type": {"Scene": 1}})
    (question,) = TASKS["seed-img"].load(folder)
    assert (question.category, question.image) == ("Scene", folder / "SEED-Bench-image" / "1_2")
    for answer, worth, unread in (("B", 100, 0), ("A", 0, 0), ("B. b", 0, 1)):
        found = report(TASKS["seed-img"], [question], [Answer("1", answer)])
        assert (found.figures["score"].value, len(found.unread)) == (worth, unread)


def test_ai2d_asks_about_the_test_pictures(write: Write) -> None:
    for name in ("0", "1"):
        told = {"What is A?": {"questionId": f"{name}.png-0", "answerTexts": ["sun", "moon"],
                               "correctAnswer": 1}}  # fmt: skip
        write(f"questions/{name}.png.json", {"imageName": f"{name}.png", "questions": told})
    folder = write("ai2d_test_ids.csv", "1\n")
    (question,) = TASKS["ai2d"].load(folder)
    assert (question.id, question.answer) == ("1.png-0", "B")
    assert question.image == folder / "images" / "1.png"
    assert question.text == "What is A?\nA. sun\nB. moon" + LETTER


@pytest.mark.parametrize(
    ("answer", "references", "is_right"),
    # As the open scorer of lmms_eval 0.7.3 says, which is MMMU's own.
    [
        ("The answer is 42.", ["42"], True),
        ("42", ["42.00"], True),
        ("x = 3.14159", ["3.14"], True),
        ("It is a Roman temple", ["roman"], True),
        ("Ionic order", ["ionic", "ionic order"], True),
        ("3", ["13"], False),
        ("B", ["b"], True),
        ("The result is 1e3", ["1000"], True),
        ("The total is 5. Therefore 7", ["7"], True),
        ("The total is 5.\nIt was red", ["red"], False),
        ("12%", ["12"], True),
        ("There are 3 cats. So we need 10", ["3"], False),
        ("about 1,200", ["1200"], True),
        ("c", ["vitamin c"], False),
        ("vitamin C", ["c"], True),
        ("", ["5"], False),
    ],
)
def test_open_answers_of_mmmu_hold_a_reference(
    answer: str, references: list[str], is_right: bool
) -> None:
    assert holds(answer, references) is is_right


def test_mmmu_shows_all_pictures_of_a_question(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"id": "val_1", "question": "<image 1> or <image 2>?", "options": "['<image 1>', 'b']",
         "answer": "B", "image_1": {"bytes": b"1"}, "image_2": {"bytes": b"2"}, "image_3": None},
        {"id": "val_2", "question": "How many?", "options": "[]", "answer": "['3', 'three']",
         "image_1": {"bytes": b"3"}},
    ]  # fmt: skip
    table = types.SimpleNamespace(to_pylist=lambda: rows)
    parquet = types.ModuleType("pyarrow.parquet")
    parquet.read_table = lambda path: table  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pyarrow", types.ModuleType("pyarrow"))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", parquet)
    folder = write("Art/validation-00000-of-00001.parquet", "")
    first, second = TASKS["mmmu"].load(folder)
    assert (first.images, first.category) == ((b"1", b"2"), "Art")
    assert first.text == "<image 1> or <image 2>?\nA. <image 1>\nB. b" + LETTER
    assert second.text == "How many?" + SHORT
    found = report(TASKS["mmmu"], [first, second], [Answer("val_1", "B"), Answer("val_2", "three")])
    assert found.figures["score"].value == 100


def test_mmmu_without_pyarrow_says_what_to_install(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(DataError, match="pip install pyarrow"):
        TASKS["mmmu"].load(write("Art/validation-00000-of-00001.parquet", ""))
