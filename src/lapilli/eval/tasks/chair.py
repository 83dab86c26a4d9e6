"""CHAIR: how many of the things that a description names are not in the picture.

Source: Rohrbach et al. 2018, "Object Hallucination in Image Captioning".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lapilli.eval.files import find, picture, read_jsonl, read_records
from lapilli.eval.metrics import Figure, figures, ratio
from lapilli.eval.ngrams import tokenize
from lapilli.eval.task import Task
from lapilli.messages import Question

COCO = "https://cocodataset.org/#download (annotations of 2014)"
SYNONYMS = "https://github.com/LisaAnne/Hallucination (data/synonyms.txt)"
CHOSEN = "questions.jsonl"
ASKED = "Please describe this image in detail."
NAMES = "names"
"""Key in a question's extra: what may be named, to the object that it names."""

NO_OBJECTS = ("home plate", "train track", "toilet seat")
"""Words for objects are parts of these, which are none of COCO's."""
_YOUNG_OR_OLD = ("baby", "adult")
_CARRIES = "passenger"
_ANIMALS = frozenset(
    {"bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe"}
)
_VEHICLES = frozenset({"airplane", "bus", "car", "train", "truck", "boat"})
_IRREGULAR = {"mice": "mouse", "geese": "goose", "children": "child", "people": "person"}


def read(folder: Path) -> list[Question]:
    """The pictures of COCO's validation set of 2014, or those that questions.jsonl names by id.

    What is in a picture are the objects marked in it and those its five captions name.
    """
    names = read_names(find(folder, "synonyms.txt", source=SYNONYMS))
    marked = find(folder, "instances_val2014.json", source=COCO)
    told = find(folder, "captions_val2014.json", source=COCO)
    categories = {row["id"]: row["name"] for row in read_records(marked, "categories")}
    things: dict[int, set[str]] = {}
    for row in read_records(marked, "annotations"):
        name = categories[row["category_id"]]
        things.setdefault(row["image_id"], set()).add(names.get(name, name))
    for row in read_records(told, "annotations"):
        things.setdefault(row["image_id"], set()).update(objects_named(row["caption"], names))
    chosen = folder / CHOSEN
    rows = read_jsonl(chosen) if chosen.is_file() else None
    wanted = None if rows is None else {str(row["question_id"]) for row in rows}
    return [
        Question(
            str(row["id"]),
            picture(folder / "val2014", row["file_name"]),
            ASKED,
            ", ".join(sorted(things.get(row["id"], ()))),
            extra={"things": sorted(things.get(row["id"], ())), NAMES: names},
        )
        for row in read_records(told, "images")
        if wanted is None or str(row["id"]) in wanted
    ]


def read_names(path: Path) -> dict[str, str]:
    """Synonyms to objects; the first of a line is the object."""
    names: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        words = [word.strip() for word in line.split(",") if word.strip()]
        names |= dict.fromkeys(words, words[0])
    return names


def objects_named(text: str, names: Mapping[str, str]) -> list[str]:
    """The objects that a text names, each time that it does, in singular or plural.

    Of names within names the longest counts: "hot dog" names no dog, "baby elephant" no person.
    """
    words, longest = tokenize(text), max(len(name.split()) for name in (*names, *NO_OBJECTS))
    found, at = [], 0
    while at < len(words):
        for length in range(longest, 0, -1):
            name = " ".join(words[at : at + length])
            singular = next((one for one in _singulars(name) if one in names), None)
            if singular is not None or any(one in NO_OBJECTS for one in _singulars(name)):
                break
        else:
            at += 1
            continue
        following = " ".join(words[at + length : at + length + 1])
        if singular is not None and not _describes(singular, following, names):
            found.append(names[singular])
        at += min(length, len(words) - at)
    return found


def _describes(word: str, following: str, names: Mapping[str, str]) -> bool:
    """Whether a word says of which kind the object after it is."""
    kinds = {names.get(one) for one in _singulars(following)}
    return (word in _YOUNG_OR_OLD and bool(kinds & _ANIMALS)) or (
        word == _CARRIES and bool(kinds & _VEHICLES)
    )


def _singulars(name: str) -> list[str]:
    """A name, and what it may be the plural of."""
    before, space, last = name.rpartition(" ")
    ends = {"ies": ("y",), "ves": ("f", "fe"), "men": ("man",), "es": ("", "e"), "s": ("",)}
    forms = [last, _IRREGULAR.get(last, last)]
    for plural, singulars in ends.items():
        if last.endswith(plural):
            forms += [last.removesuffix(plural) + singular for singular in singulars]
    return [before + space + form for form in forms]


def summarize(questions: Sequence[Question], answers: Sequence[str]) -> dict[str, Figure]:
    """Shares in percent: descriptions that name a thing which is not there (chair_s), such names
    among all names of things (chair_i), and things there that are named (recall)."""
    units = []
    for question, answer in zip(questions, answers, strict=True):
        things = set(question.extra["things"])
        named = objects_named(answer, question.extra[NAMES])
        wrong = sum(name not in things for name in named)
        seen = len(things & set(named))
        units.append([float(wrong > 0), 1, wrong, len(named), seen, len(things)])
    return figures(
        units,
        {
            "chair_s": lambda sums: 100 * ratio(sums[0], sums[1]),
            "chair_i": lambda sums: 100 * ratio(sums[2], sums[3]),
            "recall": lambda sums: 100 * ratio(sums[4], sums[5]),
        },
    )


CHAIR = Task("chair", read, figures=summarize, max_new_tokens=512)
