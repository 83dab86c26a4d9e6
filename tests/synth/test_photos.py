"""Labelled photographs: splits, names, bad label files, and collages of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lapilli.errors import DataError
from lapilli.synth.photos import (
    Photo,
    background_crops,
    draw_collage,
    load_photos,
    open_photo,
    photo_symbols,
)
from lapilli.synth.scenes import Grade
from lapilli.synth.symbols import UNSEEN_PAIRS

TEAL = (0, 190, 190)

Write = Callable[[str, list[dict[str, Any]]], None]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a label file below the data folder and a picture for each of its rows."""

    def write_rows(labels: str, rows: list[dict[str, Any]]) -> None:
        file = tmp_path / labels
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        for row in rows:
            path = file.parent / row["image"]
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (60, 40), TEAL).save(path)

    return write_rows


def clothing_row(image: str, split: str, label: str) -> dict[str, Any]:
    return {"image": image, "split": split, "label": label}


def teal_photo(tmp_path: Path, group: str = "clothing") -> Photo:
    path = tmp_path / "teal.png"
    Image.new("RGB", (60, 40), TEAL).save(path)
    return Photo(path, "hat", "hat", group, None, "clothing")


def test_clothing_keeps_its_splits_and_speaks_plainly(tmp_path: Path, write: Write) -> None:
    rows = [
        clothing_row("a.jpg", "train", "longsleeve"),
        clothing_row("b.jpg", "train", "t-shirt"),
        clothing_row("c.jpg", "validation", "outwear"),
    ]
    write("photos/clothing/labels.jsonl", rows)
    train = load_photos(tmp_path, "train")
    assert [p.name for p in train] == ["long-sleeved shirt", "t-shirt"]
    assert train[0].label == "longsleeve"
    assert [p.name for p in load_photos(tmp_path, "validation")] == ["jacket"]


def test_grocery_is_named_by_its_coarse_class_and_keeps_the_fine_one(
    tmp_path: Path, write: Write
) -> None:
    row = {"image": "a.jpg", "label": "Granny Smith", "coarse": "Apple", "kind": "fruit"}
    carrots = {"image": "b.jpg", "label": "Carrots", "coarse": "Carrots", "kind": "vegetables"}
    write("photos/grocery/labels.train.jsonl", [row, carrots])
    apple, carrot = load_photos(tmp_path, "train")
    assert (apple.name, apple.fine, apple.kind) == ("apple", "Granny Smith", "fruit")
    assert (carrot.name, carrot.fine, carrot.kind) == ("carrot", None, "vegetable")


def test_a_tenth_of_the_pets_is_held_out_and_in_no_other_split(
    tmp_path: Path, write: Write
) -> None:
    rows = [{"image": f"{i}.jpg", "label": "bengal"} for i in range(200)]
    write("photos/pets/labels.jsonl", rows)
    train = {p.path for p in load_photos(tmp_path, "train")}
    validation = {p.path for p in load_photos(tmp_path, "validation")}
    assert len(train | validation) == 200
    assert not train & validation
    assert 8 <= len(validation) <= 35


def test_flags_are_the_same_in_both_splits_under_common_names(tmp_path: Path, write: Write) -> None:
    write("flags/labels.jsonl", [{"image": "kr.png", "label": "Korea, Republic of"}])
    assert load_photos(tmp_path, "train") == load_photos(tmp_path, "validation")
    symbols = photo_symbols(load_photos(tmp_path, "train")[0])
    assert symbols.kind == "flag"
    assert symbols.extra["fine"] == "South Korea"


def test_coco_trains_only_on_licences_that_allow_it(tmp_path: Path, write: Write) -> None:
    rows = [
        {
            "image": f"{license_id}.jpg", "width": 60, "height": 40, "license": license_id,
            "captions": ["A dog."],
            "objects": [
                {"category": "dog", "box": [15.0, 10.0, 30.0, 20.0]},
                {"category": "cup", "box": [0.0, 0.0, 6.0, 4.0]},
            ],
        }
        for license_id in range(1, 8)
    ]  # fmt: skip
    write("photos/coco/train2017.jsonl", rows)
    assert {p.path.stem for p in load_photos(tmp_path, "train")} == {"4", "5", "7"}
    assert {p.path.stem for p in load_photos(tmp_path, "validation")} == {"1", "2", "3", "6"}
    symbols = photo_symbols(load_photos(tmp_path, "train")[0])
    assert symbols.things[0].box == pytest.approx((0.25, 0.25, 0.75, 0.75))
    assert [thing.name for thing in symbols.things] == ["dog", "cup"]
    assert symbols.extra["captions"] == ["A dog."]


def test_symbols_of_a_photograph_are_one_thing_that_fills_it(tmp_path: Path) -> None:
    symbols = photo_symbols(teal_photo(tmp_path))
    assert [(t.name, t.box) for t in symbols.things] == [("hat", (0.0, 0.0, 1.0, 1.0))]
    assert symbols.kind == "photo"


def test_a_missing_root_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such folder\. Give the folder"):
        load_photos(tmp_path / "nowhere", "train")


def test_an_empty_root_has_no_photographs(tmp_path: Path) -> None:
    assert load_photos(tmp_path, "train") == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"labels\.jsonl, line 2: not JSON"),
        ('{"image": "b.jpg"}', r"line 2: no 'label'"),
        ("[1]", r"line 2: no 'image'"),
        ('{"image": "../b.jpg", "label": "hat"}', r"line 2: image \.\./b\.jpg leaves its folder"),
    ],
)
def test_a_bad_label_line_is_named(tmp_path: Path, write: Write, line: str, message: str) -> None:
    write("flags/labels.jsonl", [{"image": "a.png", "label": "France"}])
    with (tmp_path / "flags/labels.jsonl").open("a", encoding="utf-8") as file:
        file.write(line)
    with pytest.raises(DataError, match=message):
        load_photos(tmp_path, "train")


def test_a_folder_without_labels_is_named(tmp_path: Path) -> None:
    (tmp_path / "flags").mkdir()
    with pytest.raises(DataError, match=r"labels\.jsonl: cannot be read"):
        load_photos(tmp_path, "train")


def test_clear_parts_of_a_picture_become_white(tmp_path: Path) -> None:
    photo = teal_photo(tmp_path)
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(photo.path)
    assert open_photo(photo).getpixel((1, 1)) == (255, 255, 255)


def test_a_file_that_is_no_picture_is_named(tmp_path: Path) -> None:
    photo = teal_photo(tmp_path)
    photo.path.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"teal\.png: cannot be opened"):
        open_photo(photo)


def test_background_crops_leave_out_flags(tmp_path: Path) -> None:
    crops = background_crops([teal_photo(tmp_path)], np.random.default_rng(0), 3, 32)
    assert [(c.size, c.getpixel((16, 16))) for c in crops] == [((32, 32), TEAL)] * 3
    with pytest.raises(DataError, match="no photographs besides flags"):
        background_crops([teal_photo(tmp_path, "flags")], np.random.default_rng(0), 1, 32)


def test_boxes_of_a_plain_collage_cover_the_pasted_photographs_exactly(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        drawn = draw_collage(rng, [teal_photo(tmp_path)], "plain")
        pixels = np.asarray(drawn.image).astype(int)
        is_photo = np.abs(pixels - TEAL).max(axis=2) <= 2
        inside = np.zeros_like(is_photo)
        for thing in drawn.symbols.things:
            x1, y1, x2, y2 = (round(v * 128) for v in thing.box)
            if thing.name == "hat":
                inside[y1:y2, x1:x2] = True
                part = is_photo[y1:y2, x1:x2]
                assert part.mean() > 0.7
                assert part.any(axis=1).mean() > 0.9
                assert part.any(axis=0).mean() > 0.9
        assert not (is_photo & ~inside).any()


@pytest.mark.parametrize("grade", ["plain", "hard"])
def test_collages_hold_photographs_and_sometimes_ordinary_shapes(
    tmp_path: Path, grade: Grade
) -> None:
    rng = np.random.default_rng(0)
    photos = [teal_photo(tmp_path)]
    drawn = [draw_collage(rng, photos, grade, max_things=3) for _ in range(80)]
    for collage in drawn:
        things = collage.symbols.things
        assert collage.symbols.kind == "collage"
        assert 1 <= len(things) <= 3
        assert any(thing.name == "hat" for thing in things)
        assert not UNSEEN_PAIRS & {(thing.color, thing.name) for thing in things}
        assert all(min(thing.box) >= 0 and max(thing.box) <= 1 for thing in things)
        assert all((thing.color is None) == (thing.size is None) for thing in things)
    assert any(thing.color for collage in drawn for thing in collage.symbols.things)


def test_the_same_seed_gives_the_same_collage(tmp_path: Path) -> None:
    photos = [teal_photo(tmp_path)]
    one, other = (draw_collage(np.random.default_rng(3), photos, "hard") for _ in range(2))
    assert one.symbols == other.symbols
    assert one.image.tobytes() == other.image.tobytes()


def test_every_photograph_of_the_shared_data_is_there_and_splits_are_apart(
    shared_data: Path,
) -> None:
    train = load_photos(shared_data, "train")
    validation = load_photos(shared_data, "validation")
    learnt = {p.path for p in train if p.set != "flags"}
    assert not learnt & {p.path for p in validation}
    assert all(p.path.is_file() for p in train + validation)
    names = {p.name for p in train}
    assert {p.name for p in validation if p.set != "coco"} <= names
    assert len({p.name for p in train if p.set == "clothing"}) == 10
    assert len({p.name for p in train if p.set == "grocery"}) == 43
