"""Labelled photographs from a folder, and collages of them with drawn shapes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from lapilli.errors import DataError
from lapilli.synth.backgrounds import add_noise, crop_background
from lapilli.synth.scenes import (
    Drawn,
    Grade,
    finish,
    make_items,
    match_tones,
    paint_items,
    pick_pairs,
    place_items,
    shared_area,
)
from lapilli.synth.symbols import Box, Symbols, Thing

Split = Literal["train", "validation"]

COCO_LICENSES = frozenset({4, 5, 7})
"""Ids of the licences under which shipped weights may learn from a photograph of COCO."""

_CLOTHING = {"longsleeve": "long-sleeved shirt", "outwear": "jacket"}
_GROCERY = {"Satsumas": "satsuma", "Carrots": "carrot"}
_KINDS = {"vegetables": "vegetable", "packages": "package"}
_PETS = {
    "abyssinian": ("cat", "Abyssinian"),
    "bengal": ("cat", "Bengal"),
    "american bulldog": ("dog", "American Bulldog"),
}
_COUNTRIES = {
    "Bolivia, Plurinational State of": "Bolivia",
    "Brunei Darussalam": "Brunei",
    "China (People's Republic of China)": "China",
    "Cocos (Keeling) Islands": "the Cocos Islands",
    "Congo, the Democratic Republic of the": "the Democratic Republic of the Congo",
    "Falkland Islands (Malvinas)": "the Falkland Islands",
    "Holy See (Vatican City State)": "Vatican City",
    "Iran, Islamic Republic of": "Iran",
    "Korea, Democratic People's Republic of": "North Korea",
    "Korea, Republic of": "South Korea",
    "Laos (Lao People's Democratic Republic)": "Laos",
    "Macedonia, the former Yugoslav Republic of": "North Macedonia",
    "Micronesia, Federated States of": "Micronesia",
    "Moldova, Republic of": "Moldova",
    "Russian Federation": "Russia",
    "Saint Helena, Ascension and Tristan da Cunha": "Saint Helena",
    "Sint Maarten (Dutch part)": "Sint Maarten",
    "Syrian Arab Republic": "Syria",
    "Taiwan (Republic of China)": "Taiwan",
    "Tanzania, United Republic of": "Tanzania",
    "Venezuela, Bolivarian Republic of": "Venezuela",
    "Virgin Islands, British": "the British Virgin Islands",
    "Virgin Islands, U.S.": "the US Virgin Islands",
}
"""How people call the countries whose labels are official names."""

_WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True, slots=True)
class Photo:
    """A photograph on disk and what is known of it.

    Attributes:
        path: the file.
        name: what a person answers: "t-shirt", "apple", "cat", "flag"; for COCO the category
            that covers most of the picture.
        label: the data set's own label.
        set: "clothing", "grocery", "pets", "flags" or "coco".
        fine: the particular sort, as it is written ("Granny Smith", "Bengal", a flag's country).
        kind: "clothing", "fruit", "vegetable", "package", "animal", "flag" or "photograph".
        objects: the labelled things of a COCO photograph.
        captions: sentences that people wrote about a COCO photograph.
    """

    path: Path
    name: str
    label: str
    set: str
    fine: str | None
    kind: str
    objects: tuple[Thing, ...] = ()
    captions: tuple[str, ...] = ()


def load_photos(root: Path, split: Split) -> list[Photo]:
    """Return the labelled photographs below a folder with `photos/` and `flags/`.

    Sets that are absent are skipped. Clothing and grocery have splits of their own; of the pets
    a tenth is held out by the hash of its file name; flags, which can only be known by heart, are
    the same in both. The train split has the COCO photographs whose licence allows it, the
    validation split the others.

    Raises:
        DataError: `root` is no folder, or a label file is missing or has a bad line.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder. Give the folder that holds photos/ and flags/.")
    photos = root / "photos"
    return [
        *_load_clothing(photos / "clothing", split),
        *_load_grocery(photos / "grocery", split),
        *_load_pets(photos / "pets", split),
        *_load_flags(root / "flags"),
        *_load_coco(photos / "coco", split),
    ]


def _rows(folder: Path, labels: str, *keys: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a label file, each with a checked `path`; none if the folder is absent."""
    if not folder.is_dir():
        return
    file = folder / labels
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read. Restore it or remove {folder}.") from error
    for number, line in enumerate(lines, start=1):
        where = f"{file}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{where}: not JSON. Write one object a line.") from error
        missing = [key for key in ("image", *keys) if not isinstance(row, dict) or key not in row]
        if missing:
            raise DataError(f"{where}: no {missing[0]!r}. Add it to the row.")
        image = PurePosixPath(str(row["image"]))
        if image.is_absolute() or ".." in image.parts:
            raise DataError(f"{where}: image {image} leaves its folder. Use a path inside it.")
        yield {**row, "path": folder / image}


def _load_clothing(folder: Path, split: Split) -> Iterator[Photo]:
    for row in _rows(folder, "labels.jsonl", "label", "split"):
        if row["split"] == split:
            label = row["label"]
            name = _CLOTHING.get(label, label)
            yield Photo(row["path"], name, label, "clothing", None, "clothing")


def _load_grocery(folder: Path, split: Split) -> Iterator[Photo]:
    labels = "labels.train.jsonl" if split == "train" else "labels.val.jsonl"
    for row in _rows(folder, labels, "label", "coarse", "kind"):
        label, coarse = row["label"], row["coarse"]
        name = _GROCERY.get(coarse, coarse.lower())
        fine = label if label != coarse else None
        kind = _KINDS.get(row["kind"], row["kind"])
        yield Photo(row["path"], name, label, "grocery", fine, kind)


def _load_pets(folder: Path, split: Split) -> Iterator[Photo]:
    for row in _rows(folder, "labels.jsonl", "label"):
        digest = hashlib.sha256(str(row["image"]).encode()).digest()
        held_out = int.from_bytes(digest[:4], "big") % 10 == 0
        if held_out == (split == "validation"):
            label = row["label"]
            name, fine = _PETS.get(label, (label, None))
            yield Photo(row["path"], name, label, "pets", fine, "animal")


def _load_flags(folder: Path) -> Iterator[Photo]:
    for row in _rows(folder, "labels.jsonl", "label"):
        label = row["label"]
        yield Photo(row["path"], "flag", label, "flags", _COUNTRIES.get(label, label), "flag")


def _load_coco(folder: Path, split: Split) -> Iterator[Photo]:
    keys = ("license", "width", "height", "objects", "captions")
    for row in _rows(folder, "train2017.jsonl", *keys):
        if (row["license"] in COCO_LICENSES) != (split == "train") or not row["objects"]:
            continue
        objects = tuple(_coco_thing(entry, row["width"], row["height"]) for entry in row["objects"])
        main = max(objects, key=lambda thing: thing.area).name
        captions = tuple(row["captions"])
        yield Photo(row["path"], main, main, "coco", None, "photograph", objects, captions)


def _coco_thing(entry: dict[str, Any], width: int, height: int) -> Thing:
    x, y, w, h = entry["box"]
    box = (x / width, y / height, min((x + w) / width, 1.0), min((y + h) / height, 1.0))
    return Thing(entry["category"], box)


def photo_symbols(photo: Photo) -> Symbols:
    """Return what is known of a photograph: one thing that fills it, or a COCO picture's objects.

    `extra` holds its `set`, `label`, `subject` (the kind), and `fine` and `captions` if any.
    """
    things = photo.objects or (Thing(photo.name, _WHOLE),)
    extra: dict[str, Any] = {"set": photo.set, "label": photo.label, "subject": photo.kind}
    if photo.fine is not None:
        extra["fine"] = photo.fine
    if photo.captions:
        extra["captions"] = list(photo.captions)
    kind = "flag" if photo.set == "flags" else "photo"
    return Symbols(things=things, kind=kind, extra=extra)


def open_photo(photo: Photo) -> Image.Image:
    """Return the photograph upright as RGB, clear parts white.

    Raises:
        DataError: the file is missing or not a picture.
    """
    try:
        with Image.open(photo.path) as opened:
            upright = ImageOps.exif_transpose(opened)
            if upright.mode == "RGB":
                upright.load()
                return upright
            layers = upright.convert("RGBA")
    except OSError as error:
        raise DataError(f"{photo.path}: cannot be opened. Restore the file.") from error
    paper = Image.new("RGBA", layers.size, "white")
    paper.alpha_composite(layers)
    return paper.convert("RGB")


def background_crops(
    photos: Sequence[Photo], rng: np.random.Generator, count: int, size_px: int
) -> list[Image.Image]:
    """Return `count` square parts of random photographs, to draw scenes on; flags are left out.

    Raises:
        DataError: there is no photograph, or one cannot be opened.
    """
    usable = _not_in(photos, "flags")
    crops = []
    for _ in range(count):
        picture = open_photo(usable[int(rng.integers(len(usable)))])
        side = min(picture.size) * (0.6 + 0.4 * float(rng.random()))
        left = (picture.width - side) * float(rng.random())
        top = (picture.height - side) * float(rng.random())
        box = (left, top, left + side, top + side)
        crop = picture.resize((size_px, size_px), Image.Resampling.BICUBIC, box=box)
        crops.append(ImageOps.mirror(crop) if rng.random() < 0.5 else crop)
    return crops


def _not_in(photos: Sequence[Photo], left_out: str) -> list[Photo]:
    usable = [photo for photo in photos if photo.set != left_out]
    if not usable:
        raise DataError(f"no photographs besides {left_out}. Give some of another set.")
    return usable


def draw_collage(
    rng: np.random.Generator,
    photos: Sequence[Photo],
    grade: Grade,
    *,
    size_px: int = 128,
    max_things: int = 4,
) -> Drawn:
    """Return one or more photographs pasted apart from each other, sometimes beside drawn shapes.

    Args:
        rng: every choice comes from it.
        photos: to choose from; those of COCO, which show many things, are left out.
        grade: "plain", or "hard": photographs turned a little, noise, photographic backgrounds.
        size_px: side of the picture.
        max_things: most photographs and shapes together.

    Raises:
        DataError: there is no usable photograph, or one cannot be opened.
    """
    usable = _not_in(photos, "coco")
    count = int(rng.integers(1, max_things + 1))
    num_shapes = int(rng.integers(1, count)) if count > 1 and rng.random() < 0.35 else 0
    chosen = _choose(rng, usable, count - num_shapes)
    boxes = _place_photos(rng, len(chosen))
    pairs = pick_pairs(rng, num_shapes, "never")
    tones, items = match_tones(rng, make_items(rng, pairs, grade))
    canvas = tones.render(size_px)
    word = tones.word
    if grade == "hard" and not items and rng.random() < 0.3:
        behind = open_photo(usable[int(rng.integers(len(usable)))])
        canvas, word = crop_background(rng, [behind], size_px), "a photograph"
    elif grade == "hard" and rng.random() < 0.4:
        canvas = add_noise(rng, canvas, 0.04 + 0.1 * float(rng.random()))
    things = [
        Thing(photo.name, _paste_photo(rng, canvas, open_photo(photo), box, grade))
        for photo, box in zip(chosen, boxes, strict=False)
    ]
    placed = place_items(rng, items, taken=[thing.box for thing in things])
    things.extend(paint_items(rng, canvas, placed))
    image = finish(rng, canvas, size_px, grade)
    return Drawn(image, Symbols(things=tuple(things), kind="collage", background=word))


def _choose(rng: np.random.Generator, photos: Sequence[Photo], count: int) -> list[Photo]:
    """Return photographs of any names, sometimes several of one name so that counting pays."""
    chosen = [photos[int(rng.integers(len(photos)))]]
    alike = [photo for photo in photos if photo.name == chosen[0].name]
    repeats = 0.7 if rng.random() < 0.3 else 0.0
    for _ in range(count - 1):
        pool = alike if rng.random() < repeats else photos
        chosen.append(pool[int(rng.integers(len(pool)))])
    return chosen


def _place_photos(rng: np.random.Generator, count: int) -> list[Box]:
    """Return up to `count` boxes apart from each other, smaller where there are more."""
    low, high = {1: (0.4, 0.8), 2: (0.34, 0.52)}.get(count, (0.3, 0.42))
    boxes: list[Box] = []
    while not boxes:
        for u, v, w, h in rng.random((120, 4)).tolist():
            wide, tall = low + (high - low) * w, low + (high - low) * h
            left, top = 0.02 + u * (0.96 - wide), 0.02 + v * (0.96 - tall)
            box = (left, top, left + wide, top + tall)
            if len(boxes) < count and all(shared_area(box, other) == 0 for other in boxes):
                boxes.append(box)
    return boxes


def _paste_photo(
    rng: np.random.Generator, canvas: Image.Image, picture: Image.Image, place: Box, grade: Grade
) -> Box:
    """Paste the picture inside `place`, keeping its proportions; return the box it covers."""
    side = canvas.width
    x1, y1, x2, y2 = (value * side for value in place)
    trim = 0.1 * float(rng.random()) * min(picture.size)
    u, v = rng.random(2).tolist()
    window = (trim * u, trim * v, picture.width - trim * (1 - u), picture.height - trim * (1 - v))
    zoom = min((x2 - x1) / (window[2] - window[0]), (y2 - y1) / (window[3] - window[1]))
    width = max(1, round((window[2] - window[0]) * zoom))
    height = max(1, round((window[3] - window[1]) * zoom))
    patch = picture.resize((width, height), Image.Resampling.BICUBIC, box=window)
    mask = _cut_out(rng, width, height)
    if grade == "hard" and rng.random() < 0.5:
        angle = 24 * (float(rng.random()) - 0.5)
        patch = patch.rotate(angle, Image.Resampling.BICUBIC, expand=True)
        mask = mask.rotate(angle, Image.Resampling.BICUBIC, expand=True)
        if patch.width > x2 - x1 or patch.height > y2 - y1:
            patch.thumbnail((round(x2 - x1), round(y2 - y1)))
            mask = mask.resize(patch.size)
    left = round((x1 + x2 - patch.width) / 2)
    top = round((y1 + y2 - patch.height) / 2)
    canvas.paste(patch, (left, top), mask)
    bounds = mask.point([0] * 128 + [255] * 128).getbbox()
    assert bounds is not None
    return (
        (left + bounds[0]) / side, (top + bounds[1]) / side,
        (left + bounds[2]) / side, (top + bounds[3]) / side,
    )  # fmt: skip


def _cut_out(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Return a rectangle, a rounded one or an ellipse as a mask that reaches all four sides."""
    kind = rng.random()
    if kind < 0.6:
        return Image.new("L", (width, height), 255)
    large = Image.new("L", (width * 4, height * 4))
    draw = ImageDraw.Draw(large)
    bounds = (0, 0, width * 4 - 1, height * 4 - 1)
    if kind < 0.85:
        draw.rounded_rectangle(
            bounds, radius=min(width, height) * (0.4 + float(rng.random())), fill=255
        )
    else:
        draw.ellipse(bounds, fill=255)
    return large.reduce(4)
