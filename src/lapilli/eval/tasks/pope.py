"""POPE: is an object in the picture, asked about objects that are and that are not.

Source: Li et al. 2023, "Evaluating Object Hallucination in Large Vision-Language Models".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lapilli.eval.files import Row, find, picture, read_jsonl
from lapilli.eval.metrics import Figure, Statistic, figures, ratio
from lapilli.eval.task import SHORT, Task
from lapilli.messages import Question

SPLITS = ("random", "popular", "adversarial")
SOURCE = "https://github.com/RUCAIBox/POPE (output/coco)"
LLAVA_QUESTIONS = "llava_pope_test.jsonl"
PICTURES = "val2014"

# LLaVA's file has "in the imange" in some questions.
_OBJECT = re.compile(r"is there an? (.+?) in the ima", re.IGNORECASE)


def read(folder: Path) -> list[Question]:
    """The questions of the label files; those of LLaVA's question file, under its ids, if it is
    there.

    LLaVA's file asks 2,910 of the 3,000 random questions, in another order, so that labels are
    found by picture and object.
    """
    labels = {(split, row["image"], _object(row)): row for split, row in _labelled(folder)}
    if not (folder / LLAVA_QUESTIONS).is_file():
        return [
            _question(f"{split}/{row['question_id']}", split, folder, row, row["label"])
            for (split, _, _), row in labels.items()
        ]
    questions = []
    for row in read_jsonl(folder / LLAVA_QUESTIONS):
        label = labels[row["category"], row["image"], _object(row)]["label"]
        questions.append(_question(str(row["question_id"]), row["category"], folder, row, label))
    return questions


def _labelled(folder: Path) -> Iterator[tuple[str, Row]]:
    for split in SPLITS:
        name = f"coco_pope_{split}.json"
        for row in read_jsonl(find(folder, name, f"coco/{name}", source=SOURCE)):
            yield split, row


def _object(row: Row) -> str:
    found = _OBJECT.match(row["text"])
    if found is None:
        raise ValueError(f"{row.where} asks for no object")
    return found[1].lower()


def _question(number: str, split: str, folder: Path, row: Row, label: Any) -> Question:
    if label not in ("yes", "no"):
        raise ValueError(f"{row.where}: label {label!r} is neither yes nor no")
    image = picture(folder / PICTURES, row["image"])
    return Question(number, image, row["text"], label, split)


def says_yes(answer: str) -> bool:
    """Whether the first sentence lacks the words No, no and not."""
    words = answer.partition(".")[0].replace(",", "").split()
    return not {"No", "no", "not"} & set(words)


def score(question: Question, answer: str) -> float:
    """1.0 if yes or no is right; every answer is one of them."""
    return float(says_yes(answer) == (question.answer == "yes"))


def summarize(questions: Sequence[Question], answers: Sequence[str]) -> dict[str, Figure]:
    """The mean F1 of the splits; F1, accuracy, precision, recall and the share of yes of each."""
    splits = [split for split in SPLITS if any(q.category == split for q in questions)]
    units = []
    for question, answer in zip(questions, answers, strict=True):
        unit = [0] * (4 * len(splits))
        said, is_there = says_yes(answer), question.answer == "yes"
        unit[4 * splits.index(question.category) + 2 * said + is_there] = 1
        units.append(unit)

    def of(at: int, number: Callable[[float, float, float, float], float]) -> Statistic:
        return lambda sums: 100 * number(*sums[4 * at : 4 * at + 4])

    statistics: dict[str, Statistic] = {
        "f1": lambda sums: sum(of(n, _f1)(sums) for n in range(len(splits))) / len(splits)
    }
    for at, split in enumerate(splits):
        statistics |= {f"{split}: {name}": of(at, number) for name, number in _NUMBERS.items()}
    return figures(units, statistics)


def _f1(rejected: float, missed: float, invented: float, found: float) -> float:
    return ratio(2 * found, 2 * found + invented + missed)


_NUMBERS: dict[str, Callable[[float, float, float, float], float]] = {
    "f1": _f1,
    "accuracy": lambda rejected, missed, invented, found: ratio(
        rejected + found, rejected + missed + invented + found
    ),
    "precision": lambda rejected, missed, invented, found: ratio(found, found + invented),
    "recall": lambda rejected, missed, invented, found: ratio(found, found + missed),
    "yes": lambda rejected, missed, invented, found: ratio(
        invented + found, rejected + missed + invented + found
    ),
}

POPE = Task("pope", read, score, summarize, ending=SHORT)
