"""COCO captions, scored by CIDEr and BLEU.

METEOR and SPICE are programs in Java and are not offered.

Source: Chen et al. 2015, "Microsoft COCO Captions: Data Collection and Evaluation Server".
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lapilli.eval.files import find, picture, read_records
from lapilli.eval.metrics import Figure, Statistic, figures, ratio
from lapilli.eval.ngrams import LONGEST_RUN, bleu, bleu_counts, cider, tokenize
from lapilli.eval.questions import references
from lapilli.eval.task import Task
from lapilli.messages import Question

KARPATHY = "dataset_coco.json"
FILES = (KARPATHY, "captions_val2014.json", "captions_val2017.json")
SOURCE = "https://cocodataset.org/#download (annotations)"
ASKED = "Provide a one-sentence caption for the provided image."


def read(folder: Path) -> list[Question]:
    """The pictures of Karpathy's test split, or of COCO's validation set."""
    path = find(folder, *FILES, source=SOURCE)
    if path.name == KARPATHY:
        return [
            _question(
                str(row["cocoid"]),
                picture(folder / row["filepath"], row["filename"]),
                [sentence["raw"] for sentence in row["sentences"]],
            )
            for row in read_records(path, "images")
            if row["split"] == "test"
        ]
    captions: dict[int, list[str]] = {}
    for row in read_records(path, "annotations"):
        captions.setdefault(row["image_id"], []).append(row["caption"])
    year = path.stem.rpartition("_")[2]
    return [
        _question(str(row["id"]), picture(folder / year, row["file_name"]), captions[row["id"]])
        for row in read_records(path, "images")
        if row["id"] in captions
    ]


def _question(number: str, image: Path, captions: list[str]) -> Question:
    return Question(number, image, ASKED, captions[0], extra={"answers": captions})


def summarize(questions: Sequence[Question], answers: Sequence[str]) -> dict[str, Figure]:
    """CIDEr, and BLEU with runs of up to one to four words, times 100.

    The weights of CIDEr are those of all pictures also in the samples of its interval.
    """
    told = [[tokenize(text) for text in references(question)] for question in questions]
    said = [tokenize(answer) for answer in answers]
    scores = cider(told, said)
    units = [
        [value, 1.0, *bleu_counts(theirs, words)]
        for value, theirs, words in zip(scores, told, said, strict=True)
    ]

    def of(longest: int) -> Statistic:
        return lambda sums: 100 * bleu(sums[2:], longest)

    statistics: dict[str, Statistic] = {"cider": lambda sums: 100 * ratio(sums[0], sums[1])}
    statistics |= {f"bleu-{n}": of(n) for n in range(LONGEST_RUN, 0, -1)}
    return figures(units, statistics)


CAPTIONS = Task("coco-captions", read, figures=summarize, max_new_tokens=48)
