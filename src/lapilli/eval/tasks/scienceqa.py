"""ScienceQA: school questions with options, some of them about a picture.

Source: Lu et al. 2022, "Learn to Explain: Multimodal Reasoning via Thought Chains".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from lapilli.eval.files import Row, find, picture, read_json, read_records
from lapilli.eval.task import LETTER, Task
from lapilli.messages import IMAGE_MARK, Question

SOURCE = "https://github.com/lupantech/ScienceQA (data/scienceqa)"
LLAVA_QUESTIONS = "llava_test_CQM-A.json"
LETTERS = "ABCDE"

_OPTION = re.compile(r"^([A-E])\. ", re.MULTILINE)
_SENTENCE = re.compile(r"The answer is ([A-Z])\.")


def read(folder: Path) -> list[Question]:
    """The test questions, from LLaVA's question file or the data set's own."""
    if (folder / LLAVA_QUESTIONS).is_file():
        return list(_of_llava(folder))
    return list(_of_problems(folder))


def read_with_image(folder: Path) -> list[Question]:
    """The test questions about a picture."""
    return [replace(q, category="image") for q in read(folder) if q.image is not None]


def _of_llava(folder: Path) -> Iterator[Question]:
    for row in read_records(folder / LLAVA_QUESTIONS):
        said, answer = (turn["value"] for turn in row["conversations"])
        image = picture(folder / "test", row["image"]) if "image" in row else None
        text = said.replace(IMAGE_MARK, "").strip()
        kind = "text" if image is None else "image"
        options = "".join(_OPTION.findall(text))
        yield Question(str(row["id"]), image, text, answer, kind, {"letters": options})


def _of_problems(folder: Path) -> Iterator[Question]:
    path = find(folder, "problems.json", source=SOURCE)
    splits = find(folder, "pid_splits.json", source=SOURCE)
    problems = Row(str(path), read_json(path))
    for number in Row(str(splits), read_json(splits))["test"]:
        row = Row(f"{path}, problem {number}", problems[number])
        letters = LETTERS[: len(row["choices"])]
        lines = [f"Context: {row['hint']}"] if row.get("hint") else []
        options = zip(letters, row["choices"], strict=True)
        lines += [row["question"], *(f"{letter}. {choice}" for letter, choice in options)]
        name = row.get("image")
        image = picture(folder / "test", f"{number}/{name}") if name else None
        kind = "text" if image is None else "image"
        answer = letters[row["answer"]]
        yield Question(number, image, "\n".join(lines), answer, kind, {"letters": letters})


def read_letter(answer: str, letters: str) -> str | None:
    """The letter of an option: alone, before ". ", or in "The answer is X."; None if none is."""
    text = answer.strip()
    if len(text) == 1 or text[1:3] == ". ":
        said = text[0]
    else:
        found = _SENTENCE.findall(text)
        said = found[0] if len(found) == 1 else ""
    return said if said and said in letters else None


def score(question: Question, answer: str) -> float | None:
    """1.0 if the letter is right."""
    said = read_letter(answer, question.extra["letters"])
    return None if said is None else float(said == question.answer)


SCIENCEQA = Task("scienceqa", read, score, ending=LETTER)
SCIENCEQA_IMG = Task("scienceqa-img", read_with_image, score, ending=LETTER)
