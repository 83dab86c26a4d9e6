"""MME: two questions about each picture, one to be answered with yes, one with no.

Source: Fu et al. 2023, "MME: A Comprehensive Evaluation Benchmark for Multimodal Large Language
Models".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from lapilli.errors import DataError
from lapilli.eval.answers import FILE_ID
from lapilli.eval.files import picture
from lapilli.eval.metrics import Figure, Statistic, figures, ratio
from lapilli.eval.task import SHORT, Task
from lapilli.messages import Question

PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark",
    "artwork", "OCR",
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
SOURCE = "https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models/tree/Evaluation"
SUFFIXES = (".jpg", ".png")
_THEIR_ENDING = "Please answer yes or no."


def read(folder: Path) -> list[Question]:
    """The questions of the subtasks that are there, as their text files hold them."""
    questions = [q for name in (*PERCEPTION, *COGNITION) for q in _subtask(folder, name)]
    if not questions:
        raise DataError(f"{folder}: no {PERCEPTION[0]}, {PERCEPTION[1]}, ... Get it from {SOURCE}.")
    return questions


def _subtask(folder: Path, name: str) -> Iterator[Question]:
    apart = (folder / name / "questions_answers_YN").is_dir()
    texts = folder / name / "questions_answers_YN" if apart else folder / name
    for path in sorted(texts.glob("*.txt")):
        # LLaVA's files know a pair of questions by the path of their picture.
        inside = f"{name}/images/{path.stem}" if apart else f"{name}/{path.stem}"
        suffix = next((s for s in SUFFIXES if (folder / f"{inside}{s}").is_file()), SUFFIXES[0])
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        for number, line in enumerate(filter(str.strip, lines), 1):
            text, tab, answer = line.rpartition("\t")
            if not tab or answer.strip().lower() not in ("yes", "no"):
                raise DataError(f"{path}: line {number} has no tab and Yes or No. Fetch it again.")
            text = text.strip().removesuffix(_THEIR_ENDING).strip()
            image = picture(folder, f"{inside}{suffix}")
            extra = {FILE_ID: f"{inside}{suffix}"}
            answer = answer.strip().lower()
            yield Question(f"{inside}{suffix}#{number}", image, text, answer, name, extra)


def read_yes_no(answer: str) -> str | None:
    """The first of "yes" and "no" within the first four letters; None if neither is there."""
    text = answer.strip().lower().replace(".", "")
    if text in ("y", "n"):
        return "yes" if text == "y" else "no"
    return "yes" if "yes" in text[:4] else "no" if "no" in text[:4] else None


def score(question: Question, answer: str) -> float | None:
    """1.0 if yes or no is right."""
    said = read_yes_no(answer)
    return None if said is None else float(said == question.answer)


def summarize(questions: Sequence[Question], answers: Sequence[str]) -> dict[str, Figure]:
    """The points of perception and cognition, and of each subtask.

    A subtask has up to 200 points: the share of questions answered rightly, and the share of
    pictures with both questions answered rightly, each of 100.
    """
    pictures: dict[tuple[str, str], list[float]] = {}
    for question, answer in zip(questions, answers, strict=True):
        key = question.category, str(question.extra[FILE_ID])
        pictures.setdefault(key, []).append(score(question, answer) or 0.0)
    names = [name for name in (*PERCEPTION, *COGNITION) if any(k == name for k, _ in pictures)]
    units = []
    for (name, _), scores in pictures.items():
        unit = [0.0] * (4 * len(names))
        at = 4 * names.index(name)
        unit[at : at + 4] = [sum(scores), len(scores), float(all(scores)), 1]
        units.append(unit)

    def points(*wanted: str) -> Statistic:
        places = [4 * names.index(name) for name in wanted if name in names]
        return lambda sums: sum(
            100 * ratio(sums[at], sums[at + 1]) + 100 * ratio(sums[at + 2], sums[at + 3])
            for at in places
        )

    groups = {"perception": PERCEPTION, "cognition": COGNITION} | {name: (name,) for name in names}
    there = {group: wanted for group, wanted in groups.items() if set(wanted) & set(names)}
    return figures(units, {group: points(*wanted) for group, wanted in there.items()})


MME = Task("mme", read, score, summarize, ending=SHORT)
