"""What a benchmark is: how its questions are read, asked, and their answers scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from lapilli.errors import DataError
from lapilli.eval.metrics import Figure
from lapilli.messages import Question

Score: TypeAlias = Callable[[Question, str], float | None]
"""How right an answer is, 0-1; None where nothing can be read in it."""

Figures: TypeAlias = Callable[[Sequence[Question], Sequence[str]], dict[str, Figure]]
"""What a benchmark is quoted by, made of all questions and answers, the foremost figure first."""

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."


@dataclass(frozen=True, slots=True)
class Task:
    """A benchmark.

    Attributes:
        name: as the command line knows it.
        read: the questions in a folder that holds the data set's own files.
        score: of one answer; of the grader's reply, where one grades. None: only all answers
            together have a score.
        figures: what the benchmark is quoted by; None: the mean of all scores, in percent.
        ending: follows each question that does not end in it already.
        max_new_tokens: longest answer.
        ask_grader: what a grader is asked about an answer; None: nobody grades. A grade that
            cannot be read says nothing of the answer and is left out of every mean, while an
            answer that cannot be read is wrong.
    """

    name: str
    read: Callable[[Path], list[Question]]
    score: Score | None = None
    figures: Figures | None = None
    ending: str = ""
    max_new_tokens: int = 16
    ask_grader: Callable[[Question, str], str] | None = None

    def load(self, folder: Path) -> list[Question]:
        """Read the questions and give each its ending.

        Raises:
            DataError: a file is missing or not in the data set's form, or two questions have
                the same id.
        """
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; name the one that holds {self.name}")
        try:
            read = self.read(folder)
        # Readers take rows for what the data set's authors wrote; other rows fail in these ways.
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{folder}: a record is not in the form of {self.name} "
                f"({type(error).__name__}: {error}). Fetch the file again."
            ) from error
        if not read:
            raise DataError(f"{folder}: no questions of {self.name}. Fetch the files again.")
        seen: set[str] = set()
        for question in read:
            if question.id in seen:
                raise DataError(f"{folder}: two questions have the id {question.id}. Remove one.")
            seen.add(question.id)
        return [self._end(question) for question in read]

    def _end(self, question: Question) -> Question:
        if question.text.endswith(self.ending):
            return question
        return replace(question, text=question.text + self.ending)


def check_pictures(questions: Sequence[Question]) -> None:
    """Refuse questions whose picture is not on the disk, before the first one is asked.

    Raises:
        DataError: names the first picture that is missing, and says how many are.
    """
    paths = {source: None for question in questions for source in question.images
             if isinstance(source, Path)}  # fmt: skip
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise DataError(
            f"{missing[0]}: no such picture ({len(missing)} of {len(paths)} are missing). "
            "Fetch the pictures of the data set."
        )
