"""SEED-Bench, the questions about single pictures, by type.

Source: Li et al. 2023, "SEED-Bench: Benchmarking Multimodal LLMs with Generative Comprehension".
"""

from __future__ import annotations

from pathlib import Path

from lapilli.eval.files import find, picture, read_json, read_records
from lapilli.eval.options import OPTIONS, lettered, written
from lapilli.eval.task import LETTER, Task
from lapilli.messages import Question

SOURCE = "https://huggingface.co/datasets/AILab-CVC/SEED-Bench"


def read(folder: Path) -> list[Question]:
    """The questions about pictures; those about videos are left out."""
    path = find(folder, "SEED-Bench.json", source=SOURCE)
    types = {number: name for name, number in read_json(path)["question_type"].items()}
    questions = []
    for row in read_records(path, "questions"):
        if row["data_type"] != "image":
            continue
        options = lettered([row[f"choice_{letter}"] for letter in "abcd"])
        questions.append(
            Question(
                str(row["question_id"]),
                picture(folder / "SEED-Bench-image", row["data_id"]),
                written(row["question"], options),
                row["answer"],
                types[row["question_type_id"]],
                {OPTIONS: options},
            )
        )
    return questions


def score(question: Question, answer: str) -> float | None:
    """1.0 if the answer is the right letter and nothing else."""
    said = answer.strip()
    return float(said == question.answer) if said in question.extra[OPTIONS] else None


SEED = Task("seed-img", read, score, ending=LETTER)
