"""Making the drawn data: pictures with their symbols, questions about them, scenes in words.

A data folder holds, for training and for validation (`validation-` before the name):

    scenes.jsonl, collages.jsonl, photos.jsonl      one record a picture: a caption, and `objects`
    *-questions.jsonl                               many conversations a picture; those of
                                                    photographs ask what they show, and
                                                    views-questions.jsonl where in them, so that
                                                    their pictures must not be cropped or mirrored
    text.jsonl                                      scenes in words instead of pictures
    books.jsonl                                     running text
    originals                                       link to the photographs
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track

from lapilli.errors import DataError
from lapilli.messages import IMAGE_MARK
from lapilli.runtime import atomic_write
from lapilli.synth.photos import Photo, background_crops, draw_collage, load_photos, photo_symbols
from lapilli.synth.questions import Turn, ask, ask_many
from lapilli.synth.scenes import Drawn, Grade, draw_scene
from lapilli.synth.symbols import Symbols
from lapilli.synth.words import describe_in_words

Split = Literal["train", "validation"]
PICTURES_PER_JOB = 200
TURNS_PER_PICTURE = 14
BOOK_PIECE_CHARS = 600
SQUARE_SHARE = 0.6
WIDE_BELOW = 0.88
"""Of one draw in 0-1: below the first a scene is square, below the second wide, above it tall."""
ORIGINALS = "originals"
"""Link to the folder of photographs, so that records stay where the data are moved."""
FILES = frozenset(
    f"{prefix}{name}.jsonl"
    for prefix in ("", "validation-")
    for kind in ("scenes", "collages", "photos", "views", "text", "books")
    for name in (kind, f"{kind}-questions")
)
"""Names of records that a data folder may hold."""
MADE = "made.json"
"""The settings of a finished folder; written last."""


@dataclass(frozen=True)
class DrawnData:
    """What to make.

    Attributes:
        pictures: drawn scenes for training; a tenth as many for validation, 500 at most.
        collages, texts: scenes of photographs; scenes in words.
        hard: share of the scenes that are of the hard grade.
        photos: folder with `photos/` and `flags/` (see docs/data.md); None for drawings alone.
        books: folder of text files; None for no books.
    """

    pictures: int = 30000
    collages: int = 8000
    texts: int = 20000
    hard: float = 0.45
    size_px: int = 128
    seed: int = 1
    photos: Path | None = None
    books: Path | None = None


def make_drawn(data: DrawnData, out: Path) -> None:
    """Write a data folder; one that was finished with the same settings is left as it is.

    Raises:
        DataError: the folder holds data of other settings, or the photographs are missing.
    """
    marker = out / MADE
    if marker.exists():
        _check_made(marker, data)
        if data.photos is not None:
            _link_originals(out, data.photos)
        return
    if data.photos is not None and not subjects(data.photos, "train"):
        raise DataError(f"{data.photos}: no labelled photographs; name the folder above photos/")
    out.mkdir(parents=True, exist_ok=True)
    splits: tuple[Split, ...] = ("train", "validation")
    for split in splits:
        _make_split(data, out, split)
    if data.photos is not None:
        _link_originals(out, data.photos)
    if data.books is not None:
        _write_lines(out / "books.jsonl", _book_records(data.books))
    atomic_write(marker, (json.dumps(_settings(data), indent=2) + "\n").encode())


def files_left_out(out: Path) -> frozenset[str]:
    """Return the `FILES` that a finished folder is without: no photographs, say, or no books."""
    return frozenset(name for name in FILES if not (out / name).exists())


def _settings(data: DrawnData) -> dict[str, Any]:
    """Of photographs and books, only whether there are any: folders are moved and renamed."""
    used = {"photos": data.photos is not None, "books": data.books is not None}
    return {**asdict(data), **used}


def _check_made(marker: Path, data: DrawnData) -> None:
    try:
        made = json.loads(marker.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{marker}: not JSON ({error}); remove it to make the data anew") from error
    if not isinstance(made, dict):
        raise DataError(f"{marker}: holds no settings; remove it to make the data anew")
    other = [
        f"{key} {json.dumps(made.get(key))}, not {json.dumps(value)}"
        for key, value in _settings(data).items()
        if made.get(key) != value
    ]
    if other:
        raise DataError(
            f"{marker.parent}: holds data made with other settings ({'; '.join(other)}); "
            "choose another folder"
        )


def _link_originals(out: Path, photos: Path) -> None:
    link = out / ORIGINALS
    if link.is_symlink() and link.readlink() == photos.resolve():
        return
    link.unlink(missing_ok=True)
    link.symlink_to(photos.resolve(), target_is_directory=True)


def _make_split(data: DrawnData, out: Path, split: Split) -> None:
    is_training = split == "train"
    share = 1.0 if is_training else 0.1
    plans = {
        "scenes": min(int(data.pictures * share), data.pictures if is_training else 500),
        "collages": 0 if data.photos is None else min(
            int(data.collages * share), data.collages if is_training else 300
        ),
        "text": min(int(data.texts * share), data.texts if is_training else 500),
    }  # fmt: skip
    prefix = "" if is_training else "validation-"
    # A forked process would inherit locks that threads of this one hold.
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        for kind, count in plans.items():
            if not count:
                continue
            if kind != "text":
                (out / f"{prefix}{kind}").mkdir(exist_ok=True)
            starts = range(0, count, PICTURES_PER_JOB)
            job = partial(_job, data, out, split, kind, count)
            results = track(
                pool.map(job, starts), f"{split}: {kind}", len(starts), console=Console(stderr=True)
            )
            pictures: list[dict[str, Any]] = []
            questions: list[dict[str, Any]] = []
            for first, second in results:
                pictures += first
                questions += second
            if kind == "text":
                _write_lines(out / f"{prefix}text.jsonl", questions)
            else:
                _write_lines(out / f"{prefix}{kind}.jsonl", pictures)
                _write_lines(out / f"{prefix}{kind}-questions.jsonl", questions)
    if data.photos is not None:
        for name, rows in _photo_records(data, split).items():
            if rows:
                _write_lines(out / f"{prefix}{name}.jsonl", rows)


def _job(
    data: DrawnData, out: Path, split: Split, kind: str, count: int, start: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    pictures: list[dict[str, Any]] = []
    questions: list[dict[str, Any]] = []
    prefix = "" if split == "train" else "validation-"
    for index in range(start, min(count, start + PICTURES_PER_JOB)):
        seed = [data.seed, ("train", "validation").index(split), sum(kind.encode()), index]
        rng, choices = np.random.default_rng(seed), random.Random(repr(seed))
        drawn = _draw(data, split, kind, rng)
        name = f"{prefix}{kind}/{index:06d}.png"
        if kind == "text":
            questions += _text_records(choices, drawn.symbols, name)
            continue
        drawn.image.save(out / name, compress_level=1)
        turns = ask_many(choices, drawn.symbols, TURNS_PER_PICTURE)
        pictures.append(_picture_record(choices, drawn.symbols, name))
        questions += [record(turn, name, f"{name}#{i}") for i, turn in enumerate(turns)]
    return pictures, questions


def _draw(data: DrawnData, split: Split, kind: str, rng: np.random.Generator) -> Drawn:
    grade: Grade = "hard" if rng.random() < data.hard else "plain"
    if kind == "collages":
        assert data.photos is not None
        return draw_collage(rng, subjects(data.photos, split), grade, size_px=data.size_px)
    backgrounds = None
    if data.photos is not None and grade == "hard" and kind == "scenes":
        backgrounds = _backgrounds(data.photos, split, data.size_px)
    # Few objects come more often: what one object is has to be learned before how many there are.
    most = int(rng.integers(1, 4)) if rng.random() < 0.25 else None
    return draw_scene(
        rng,
        grade,
        size_px=data.size_px,
        backgrounds=backgrounds,
        max_things=most,
        stretch=_stretch(rng),
    )


def _stretch(rng: np.random.Generator) -> float:
    """Pictures of all formats are squashed into the square that the tower sees."""
    luck, u = rng.random(2).tolist()
    if luck < SQUARE_SHARE:
        return 1.0
    return 0.55 + 0.4 * u if luck < WIDE_BELOW else 1.05 + 0.65 * u


@lru_cache(2)
def _photos(root: Path, split: Split) -> list[Photo]:
    return load_photos(root, split)


@lru_cache(2)
def subjects(root: Path, split: Split) -> list[Photo]:
    """Photographs and flags of one subject each."""
    return [photo for photo in _photos(root, split) if photo.set != "coco"]


@lru_cache(2)
def _backgrounds(root: Path, split: Split, size_px: int) -> list[Image.Image]:
    return background_crops(_photos(root, split), np.random.default_rng(0), 300, size_px)


def record(turns: Sequence[Turn], image: str, record_id: str) -> dict[str, Any]:
    """Return a LLaVA record of a conversation about one picture."""
    conversations = []
    for index, turn in enumerate(turns):
        mark = f"{IMAGE_MARK}\n" if index == 0 else ""
        conversations.append({"from": "human", "value": mark + turn.question})
        conversations.append({"from": "gpt", "value": turn.answer})
    kind = turns[0].kind if turns else ""
    return {"id": record_id, "image": image, "kind": kind, "conversations": conversations}


def _picture_record(rng: random.Random, symbols: Symbols, image: str) -> dict[str, Any]:
    turns = ask(rng, symbols, ["caption"]) or ask(rng, symbols) or []
    row = record(turns, image, image)
    row["objects"] = [thing.to_json() for thing in symbols.things]
    return row


def _text_records(rng: random.Random, symbols: Symbols, group: str) -> Iterator[dict[str, Any]]:
    scene = describe_in_words(rng, symbols)
    for index, turns in enumerate(ask_many(rng, symbols, 8)):
        row = record(turns, group, f"{group}#{index}")
        del row["image"]
        first = row["conversations"][0]
        first["value"] = first["value"].replace(IMAGE_MARK, scene, 1)
        yield {**row, "group": group}


def _photo_records(data: DrawnData, split: Split) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of each file of photographs."""
    assert data.photos is not None
    files: dict[str, list[dict[str, Any]]] = {
        "photos": [], "photos-questions": [], "views-questions": [],
    }  # fmt: skip
    rng = random.Random(data.seed)
    photos = _photos(data.photos, split)
    for photo in track(photos, f"{split}: photos", console=Console(stderr=True)):
        symbols = photo_symbols(photo)
        name = os.path.relpath(photo.path, data.photos)
        row = _picture_record(rng, symbols, name)
        if photo.fine:
            for thing in row["objects"]:
                thing["fine"] = photo.fine
        row["set"] = photo.set
        files["photos"].append(row)
        turns = ask_many(rng, symbols, TURNS_PER_PICTURE)
        asked = files["views-questions" if photo.set == "coco" else "photos-questions"]
        asked += [record(turn, name, f"{name}#{i}") for i, turn in enumerate(turns)]
    return files


def _book_records(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob("*")):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        text = " ".join(line.strip() for line in lines if line.strip())
        for start in range(0, len(text) - BOOK_PIECE_CHARS, BOOK_PIECE_CHARS):
            piece = text[start : start + BOOK_PIECE_CHARS]
            yield {"id": f"{path.stem}#{start}", "text": piece}


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("w") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
