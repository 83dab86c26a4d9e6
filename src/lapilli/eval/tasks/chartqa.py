"""ChartQA: questions about charts; numbers may be 5% off.

Source: Masry et al. 2022, "ChartQA: A Benchmark for Question Answering about Charts".
"""

from __future__ import annotations

from pathlib import Path

from lapilli.eval.files import find, picture, read_records
from lapilli.eval.task import SHORT, Task
from lapilli.messages import Question

SOURCE = "https://github.com/vis-nlp/ChartQA (ChartQA Dataset)"
TOLERANCE = 0.05


def read(folder: Path) -> list[Question]:
    """The test questions that people wrote, and those that were made by a model."""
    questions = []
    for kind in ("human", "augmented"):
        name = f"test_{kind}.json"
        path = find(folder, f"test/{name}", name, source=SOURCE)
        for number, row in enumerate(read_records(path), 1):
            image = picture(path.parent / "png", row["imgname"])
            questions.append(
                Question(f"{kind}/{number}", image, row["query"], str(row["label"]), kind)
            )
    return questions


def relaxed(reference: str, answer: str) -> float:
    """1.0 for a number within 5% of the reference, or the same text but for case."""
    truth, said = _number(reference), _number(answer)
    if truth and said is not None:
        return float(abs(said - truth) <= TOLERANCE * abs(truth))
    return float(answer.strip().lower() == reference.strip().lower())


def _number(text: str) -> float | None:
    text = text.strip()
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def score(question: Question, answer: str) -> float:
    """Relaxed accuracy."""
    return relaxed(question.answer, answer)


CHARTQA = Task("chartqa", read, score, ending=SHORT)
