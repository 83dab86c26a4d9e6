"""RefCOCO, RefCOCO+ and RefCOCOg: the box of the thing that a phrase refers to.

Sources: Yu et al. 2016, "Modeling Context in Referring Expressions"; Mao et al. 2016, "Generation
and Comprehension of Unambiguous Object Descriptions".
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from lapilli.errors import DataError
from lapilli.eval.files import picture, read_records
from lapilli.eval.metrics import Box, Figure, iou, mean, parse_box
from lapilli.eval.task import Task
from lapilli.messages import Question

SOURCE = "the annotations of MDETR, https://zenodo.org/records/4729015"
SPLITS = ("val", "testA", "testB", "test")
ASKED = "Please provide the bounding box coordinate of the region this sentence describes: {}."
MIN_IOU = 0.5


def read(folder: Path, name: str) -> list[Question]:
    """The phrases of all splits that are there, from finetune_NAME_SPLIT.json.

    The data set's own files are pickles, which can run code and are never opened.
    """
    found = {split: folder / f"finetune_{name}_{split}.json" for split in SPLITS}
    paths = {split: path for split, path in found.items() if path.is_file()}
    if not paths:
        raise DataError(f"{folder}: no finetune_{name}_val.json. Get it from {SOURCE}.")
    questions = []
    for split, path in paths.items():
        boxes = {row["image_id"]: row["bbox"] for row in read_records(path, "annotations")}
        for row in read_records(path, "images"):
            width, height = row["width"], row["height"]
            x, y, w, h = boxes[row["id"]]
            box = [x / width, y / height, (x + w) / width, (y + h) / height]
            image = picture(folder / "train2014", row["file_name"])
            answer = "[" + ", ".join(f"{side:.2f}" for side in box) + "]"
            phrase = row["caption"].strip().rstrip(".")
            extra = {"box": box, "size": [width, height]}
            number = f"{split}/{row['id']}"
            text = ASKED.format(phrase)
            questions.append(Question(number, image, text, answer, split, extra))
    return questions


def score(question: Question, answer: str) -> float | None:
    """1.0 if the box, in fractions of the picture, overlaps the true one by an IoU above 0.5."""
    box = parse_box(answer)
    return None if box is None else float(iou(box, question.extra["box"]) > MIN_IOU)


def score_in_square(question: Question, answer: str) -> float | None:
    """The same for a box in fractions of the picture padded to a square, as LLaVA-1.5 sees it."""
    box = parse_box(answer)
    if box is None:
        return None
    return float(iou(out_of_square(box, *question.extra["size"]), question.extra["box"]) > MIN_IOU)


def out_of_square(box: Box, width: float, height: float) -> Box:
    """A box in fractions of the centered padded square, in fractions of the picture."""
    side = max(width, height)
    left, above = (side - width) / 2, (side - height) / 2
    x1, y1, x2, y2 = (at * side for at in box)
    return (
        (x1 - left) / width,
        (y1 - above) / height,
        (x2 - left) / width,
        (y2 - above) / height,
    )


def by_split(
    questions: Sequence[Question], answers: Sequence[str], *, square: bool
) -> dict[str, Figure]:
    """Accuracy on each split; a figure over all splits is not quoted."""
    scorer = score_in_square if square else score
    scores: dict[str, list[float]] = {}
    for question, answer in zip(questions, answers, strict=True):
        scores.setdefault(question.category, []).append(scorer(question, answer) or 0.0)
    return {split: mean(values, scale=100) for split, values in scores.items()}


def _task(name: str, *, square: bool) -> Task:
    return Task(
        f"{name}-square" if square else name,
        partial(read, name=name),
        score_in_square if square else score,
        partial(by_split, square=square),
        max_new_tokens=48,
    )


REFCOCO = tuple(
    _task(name, square=square)
    for name in ("refcoco", "refcoco+", "refcocog")
    for square in (False, True)
)
