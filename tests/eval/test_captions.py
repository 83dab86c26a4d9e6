"""COCO captions and CHAIR: texts scored together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lapilli.eval.ngrams import bleu, bleu_counts, cider, tokenize
from lapilli.eval.runner import Answer, report
from lapilli.eval.tasks import TASKS
from lapilli.eval.tasks.chair import objects_named, read_names

Write = Callable[[str, Any], Path]

TOLD = [
    ["a man rides a red bike on the street", "a man is riding a bicycle",
     "someone rides a bike down the road"],
    ["two cats sleep on a sofa", "a pair of cats lying on a couch"],
    ["a bowl of soup on the table next to bread", "soup and bread on a wooden table",
     "a bowl of soup"],
]  # fmt: skip
SAID = [
    "a man rides a bike on the road", "two cats on a couch", "a plate of bread on a wooden table"
]  # fmt: skip
# What pycocoevalcap 1.2 makes of them.
BLEU = [0.9047619047188209, 0.838870492764586, 0.7213225703078618, 0.5534547808557793]
CIDER = 2.5026270125286163


def test_bleu_and_cider_are_those_of_pycocoevalcap() -> None:
    told = [[text.split() for text in texts] for texts in TOLD]
    said = [text.split() for text in SAID]
    scores = cider(told, said)
    assert sum(scores) / len(scores) == pytest.approx(CIDER, abs=1e-9)
    counts = zip(*map(bleu_counts, told, said), strict=True)
    sums = [sum(column) for column in counts]
    assert [bleu(sums, n) for n in (1, 2, 3, 4)] == pytest.approx(BLEU, abs=1e-6)


def test_short_captions_lose_in_bleu() -> None:
    # One of one word is right, and the reference has three: exp(1 - 3).
    sums = bleu_counts([["a", "red", "dog"]], ["dog"])
    assert bleu(sums, 1) == pytest.approx(0.1353352832)
    assert bleu(sums, 2) == 0
    assert bleu(bleu_counts([["a"]], []), 1) == 0


def test_marks_and_case_are_no_words() -> None:
    assert tokenize("A man's dog, isn't it? (Black-and-white.)") == [
        "a", "man", "'s", "dog", "is", "n't", "it", "black-and-white",
    ]  # fmt: skip


def test_captions_are_read_and_scored_together(write: Write) -> None:
    images = [{"id": n, "file_name": f"{n}.jpg"} for n in range(3)]
    notes = [{"image_id": n, "caption": text} for n, texts in enumerate(TOLD) for text in texts]
    folder = write("captions_val2014.json", {"images": images, "annotations": notes})
    questions = TASKS["coco-captions"].load(folder)
    assert questions[0].image == folder / "val2014" / "0.jpg"
    answers = [Answer(str(n), text.capitalize() + ".") for n, text in enumerate(SAID)]
    found = report(TASKS["coco-captions"], questions, answers[::-1])
    assert found.figures["cider"].value == pytest.approx(100 * CIDER)
    assert found.figures["bleu-4"].value == pytest.approx(100 * BLEU[3], abs=1e-4)
    assert list(found.figures) == ["cider", "bleu-4", "bleu-3", "bleu-2", "bleu-1"]
    assert found.categories == {}


def test_karpathys_test_split_is_read(write: Write) -> None:
    row = {"filepath": "val2014", "sentences": [{"raw": "A dog."}]}
    rows = [
        row | {"split": split, "cocoid": n, "filename": f"{n}.jpg"}
        for n, split in enumerate(("train", "test"))
    ]
    folder = write("dataset_coco.json", {"images": rows})
    (question,) = TASKS["coco-captions"].load(folder)
    assert (question.id, question.image) == ("1", folder / "val2014" / "1.jpg")


SYNONYMS = """person, man, woman, baby, people, child, policeman
dog, puppy
hot dog
elephant
train
toilet
knife
bus
chair, seat
bench
sandwich
wine glass
teddy bear, teddy
bear
"""


@pytest.fixture
def names(write: Write) -> dict[str, str]:
    return read_names(write("synonyms.txt", SYNONYMS) / "synonyms.txt")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("Two men and three women on a bench.", ["person", "person", "bench"]),
        ("A baby elephant with a baby", ["elephant", "person"]),
        ("hot dogs and a puppy", ["hot dog", "dog"]),
        ("a passenger train on the train tracks", ["train"]),
        ("He slid to home plate", []),
        ("knives on benches, sandwiches and buses", ["knife", "bench", "sandwich", "bus"]),
        ("a toilet seat, a seat", ["chair"]),
        ("teddy bears; policemen", ["teddy bear", "person"]),
        ("a glass", []),
        ("", []),
    ],
)
def test_objects_are_found_in_words(names: dict[str, str], text: str, named: list[str]) -> None:
    assert objects_named(text, names) == named


def test_chair_counts_what_is_not_there(write: Write) -> None:
    write("synonyms.txt", SYNONYMS)
    things = [{"image_id": 1, "category_id": 18}, {"image_id": 2, "category_id": 18}]
    write(
        "instances_val2014.json",
        {"categories": [{"id": 18, "name": "dog"}], "annotations": things},
    )
    images = [{"id": n, "file_name": f"{n}.jpg"} for n in (1, 2, 3)]
    notes = [{"image_id": 1, "caption": "A man with his dog."}]
    folder = write("captions_val2014.json", {"images": images, "annotations": notes})
    assert len(TASKS["chair"].load(folder)) == 3
    write("questions.jsonl", [{"question_id": 1}, {"question_id": 2}])
    questions = TASKS["chair"].load(folder)
    assert [q.answer for q in questions] == ["dog, person", "dog"]
    answers = [
        Answer("1", "A man on a bench beside a bench with a puppy."),
        Answer("2", "A dog."),
    ]
    found = report(TASKS["chair"], questions, answers)
    assert found.figures["chair_s"].value == pytest.approx(50)
    assert found.figures["chair_i"].value == pytest.approx(100 * 2 / 5)
    assert found.figures["recall"].value == pytest.approx(100)
