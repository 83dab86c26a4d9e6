"""DocVQA: questions about scanned documents, scored by ANLS.

Source: Mathew et al. 2021, "DocVQA: A Dataset for VQA on Document Images"; Biten et al. 2019,
"Scene Text Visual Question Answering".
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lapilli.eval.files import find, picture, read_records
from lapilli.eval.questions import references
from lapilli.eval.task import SHORT, Task
from lapilli.messages import Question

SOURCE = "https://rrc.cvc.uab.es/?ch=17 (task 1)"
LEAST_SIMILARITY = 0.5


def read(folder: Path) -> list[Question]:
    """The validation questions, by the first of their types."""
    path = find(folder, "val_v1.0_withQT.json", "val_v1.0.json", source=SOURCE)
    questions = []
    for row in read_records(path, "data"):
        kind = next(iter(row.get("question_types") or []), "")
        extra = {"answers": row["answers"]}
        image = picture(folder, row["image"])
        number, answer = str(row["questionId"]), row["answers"][0]
        questions.append(Question(number, image, row["question"], answer, kind, extra))
    return questions


def anls(truths: Sequence[str], answer: str) -> float:
    """Similarity to the nearest reference, 0-1, as one minus edits for each letter; 0 below 0.5."""
    said = _even(answer)
    best = 0.0
    for truth in map(_even, truths):
        longest = max(len(truth), len(said))
        best = max(best, 1 - _edits(truth, said) / longest if longest else 1.0)
    return best if best >= LEAST_SIMILARITY else 0.0


def _even(text: str) -> str:
    return " ".join(text.lower().split())


def _edits(a: str, b: str) -> int:
    """Letters to insert, delete or replace that turn one text into the other (Levenshtein)."""
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (letter != other))
    return row[-1]


def score(question: Question, answer: str) -> float:
    """ANLS."""
    return anls(references(question), answer)


DOCVQA = Task("docvqa", read, score, ending=SHORT, max_new_tokens=32)
