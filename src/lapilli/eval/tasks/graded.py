"""MM-Vet and LLaVA-Bench: open answers that a language model grades.

The words a grader is asked in are ours. Grades depend on them and on the grader, and compare only
with grades that came about in the same way.

Sources: Yu et al. 2023, "MM-Vet"; Liu et al. 2023, "Visual Instruction Tuning".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lapilli.eval.files import Row, find, picture, read_json, read_jsonl
from lapilli.eval.metrics import Figure, Statistic, figures, ratio
from lapilli.eval.task import Task
from lapilli.messages import Question

MM_VET_SOURCE = "https://github.com/yuweihao/MM-Vet (mm-vet.zip)"
WILD_SOURCE = "https://huggingface.co/datasets/liuhaotian/llava-bench-in-the-wild"
COCO_SOURCE = "https://github.com/haotian-liu/LLaVA (playground/data/coco2014_val_qa_eval)"
LONGEST_ANSWER = 1024
HIGHEST = 10.0

_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w%])")

Mark = tuple[float, float]
"""Grade of the reference and of the answer, 1-10."""


def read_mm_vet(folder: Path) -> list[Question]:
    """All questions, with the capabilities that they need."""
    path = find(folder, "mm-vet.json", source=MM_VET_SOURCE)
    questions = []
    for number, content in read_json(path).items():
        row = Row(f"{path}, {number}", content)
        needs = sorted(row["capability"])
        image = picture(folder / "images", row["imagename"])
        answer, extra = str(row["answer"]), {"needs": needs}
        questions.append(Question(number, image, row["question"], answer, ", ".join(needs), extra))
    return questions


def ask_share(question: Question, answer: str) -> str:
    """Ask a grader for the share of the truth that an answer tells."""
    return (
        "Grade an answer to a question about a picture that you cannot see. <AND> in the true "
        "answer joins parts that must all be told, <OR> joins parts of which one is enough. Give "
        "0.0 if nothing is right, 1.0 if everything is, and steps of 0.1 between them.\n\n"
        f"Question: {question.text}\nTrue answer: {question.answer}\nAnswer to grade: {answer}\n\n"
        "Reply with the grade alone."
    )


def score_share(question: Question, reply: str) -> float | None:
    """The first number of a grader's reply, if it is a share."""
    found = _NUMBER.search(reply)
    value = float(found[0]) if found else -1.0
    return value if 0 <= value <= 1 else None


def by_capability(questions: Sequence[Question], replies: Sequence[str]) -> dict[str, Figure]:
    """The mean grade in percent, of all questions and of those that need each capability."""
    names = sorted({need for question in questions for need in question.extra["needs"]})
    units = []
    for question, reply in zip(questions, replies, strict=True):
        value = score_share(question, reply)
        if value is not None:
            unit = [value, 1.0]
            for name in names:
                is_needed = name in question.extra["needs"]
                unit += [value * is_needed, float(is_needed)]
            units.append(unit)
    return figures(units, {name: _mean(2 * at) for at, name in enumerate(["total", *names])})


def _mean(at: int) -> Statistic:
    return lambda sums: 100 * ratio(sums[at], sums[at + 1])


def read_wild(folder: Path) -> list[Question]:
    """The questions of LLaVA-Bench in the Wild, with captions of the pictures for the grader."""
    context = find(folder, "context.jsonl", source=WILD_SOURCE)
    contexts = {row["image"]: row["caption"] for row in read_jsonl(context)}
    answers = find(folder, "answers_gpt4.jsonl", source=WILD_SOURCE)
    asked = find(folder, "questions.jsonl", source=WILD_SOURCE)
    return _read_pairs(asked, answers, contexts, folder / "images", "")


def read_coco(folder: Path) -> list[Question]:
    """The 90 questions of LLaVA-Bench (COCO), with captions and boxes for the grader."""
    context = find(folder, "caps_boxes_coco2014_val_80.jsonl", source=COCO_SOURCE)
    contexts = {row["image"]: _symbols(row) for row in read_jsonl(context)}
    answers = find(folder, "qa90_gpt4_answer.jsonl", source=COCO_SOURCE)
    asked = find(folder, "qa90_questions.jsonl", source=COCO_SOURCE)
    return _read_pairs(asked, answers, contexts, folder / "val2014", "COCO_val2014_")


def _symbols(row: Row) -> str:
    boxes = [f"{thing['category']}: {thing['bbox']}" for thing in row.get("instances", [])]
    return "\n".join([*row["captions"], *boxes])


def _read_pairs(
    path: Path, answers: Path, contexts: dict[str, str], pictures: Path, prefix: str
) -> list[Question]:
    known = {row["question_id"]: row["text"] for row in read_jsonl(answers)}
    questions = []
    for row in read_jsonl(path):
        name, number = row["image"], row["question_id"]
        image = picture(pictures, prefix + name.removeprefix(prefix))
        extra: dict[str, Any] = {"context": contexts[name]}
        text, answer = row["text"], known[number]
        questions.append(Question(str(number), image, text, answer, row["category"], extra))
    return questions


def ask_marks(question: Question, answer: str) -> str:
    """Ask a grader for marks from 1 to 10 for the reference and for an answer."""
    return (
        "Two assistants answered a question about a picture. You cannot see it, but read what is "
        "in it. Mark each answer from 1 to 10 for being helpful, relevant, accurate and detailed; "
        "the order in which they stand must not matter.\n\n"
        f"In the picture:\n{question.extra['context']}\n\nQuestion: {question.text}\n\n"
        f"First answer:\n{question.answer}\n\nSecond answer:\n{answer}\n\n"
        "Reply with the two marks alone on the first line, first answer's mark first, parted by a "
        "space. Give your reasons on the lines after it."
    )


def read_marks(reply: str) -> Mark | None:
    """The two numbers on the first line of a grader's reply; None if there are not just two."""
    marks = [float(number) for number in _NUMBER.findall(reply.strip().partition("\n")[0])]
    if len(marks) != 2 or not all(1 <= mark <= HIGHEST for mark in marks):
        return None
    return marks[0], marks[1]


def score_marks(question: Question, reply: str) -> float | None:
    """The mark of the answer as a share of the highest."""
    marks = read_marks(reply)
    return None if marks is None else marks[1] / HIGHEST


def relative(questions: Sequence[Question], replies: Sequence[str]) -> dict[str, Figure]:
    """The sum of the answers' marks in percent of the references', over all and by category."""
    names = list(dict.fromkeys(question.category for question in questions))
    units = []
    for question, reply in zip(questions, replies, strict=True):
        marks = read_marks(reply)
        if marks is not None:
            unit = [marks[1], marks[0]]
            for name in names:
                unit += [mark * (question.category == name) for mark in (marks[1], marks[0])]
            units.append(unit)
    return figures(units, {name: _mean(2 * at) for at, name in enumerate(["relative", *names])})


MM_VET = Task("mm-vet", read_mm_vet, score_share, by_capability, "", LONGEST_ANSWER, ask_share)
LLAVA_WILD = Task(
    "llava-bench-wild", read_wild, score_marks, relative, "", LONGEST_ANSWER, ask_marks
)
LLAVA_COCO = Task(
    "llava-bench-coco", read_coco, score_marks, relative, "", LONGEST_ANSWER, ask_marks
)
