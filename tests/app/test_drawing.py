"""Making a data folder: what it holds, and when it is made."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lapilli.app import drawing
from lapilli.app.drawing import FILES, DrawnData, files_left_out, make_drawn
from lapilli.data.records import Records
from lapilli.errors import DataError

SMALL = DrawnData(pictures=12, collages=0, texts=12, size_px=32)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder without photographs and books."""
    out = tmp_path_factory.mktemp("plain") / "data"
    make_drawn(SMALL, out)
    return out


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of clothes, two a split, and a book."""
    root = tmp_path_factory.mktemp("originals")
    folder = root / "photos/clothing"
    folder.mkdir(parents=True)
    with (folder / "labels.jsonl").open("w") as file:
        for number, label in enumerate(("dress", "hat", "pants", "shoes")):
            Image.new("RGB", (40, 40), (60 * number, 90, 0)).save(folder / f"{number}.png")
            row = {"image": f"{number}.png", "label": label}
            file.write(json.dumps(row | {"split": ("train", "validation")[number % 2]}) + "\n")
    (root / "books").mkdir()
    (root / "books/night.txt").write_text("It was a dark\nand stormy night. " * 200)
    return root


@pytest.fixture(scope="module")
def rich(originals: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photographs and books."""
    out = tmp_path_factory.mktemp("rich") / "data"
    photos = {"collages": 10, "photos": originals, "books": originals / "books"}
    make_drawn(replace(SMALL, **photos), out)
    return out


def content(out: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def refuse_making(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(*_: Any) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(drawing, "_make_split", make)


def test_every_record_can_be_read(plain: Path) -> None:
    counts = {}
    for path in sorted(plain.glob("*.jsonl")):
        samples = list(Records(path))
        counts[path.name] = len(samples)
        for sample in samples:
            assert sample.conversation[-1].role == "assistant"
            assert sample.kind
            for image in sample.images:
                with Image.open(image) as picture:
                    assert picture.size == (32, 32)
    assert counts["scenes.jsonl"] == 12
    assert counts["validation-scenes.jsonl"] == 1
    assert counts["scenes-questions.jsonl"] > 100


def test_pictures_come_with_what_is_in_them(plain: Path) -> None:
    for sample in Records(plain / "scenes.jsonl"):
        assert sample.objects
        for thing in sample.objects:
            x1, y1, x2, y2 = thing["box"]
            assert 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1
            assert {"name", "color", "size"} <= thing.keys()


def test_scenes_in_words_stand_in_the_place_of_pictures(plain: Path) -> None:
    samples = list(Records(plain / "text.jsonl"))
    assert len({sample.group for sample in samples}) == 12
    for sample in samples:
        assert not sample.images
        assert "\n" in sample.conversation[0].text.strip(), "a scene, then a question"


def test_validation_shows_other_pictures(plain: Path) -> None:
    training, validation = (
        {path.read_bytes() for path in (plain / folder).iterdir()}
        for folder in ("scenes", "validation-scenes")
    )
    assert len(training) == 12
    assert not training & validation


def test_the_same_settings_make_the_same_folder_and_another_seed_another(
    plain: Path, tmp_path: Path
) -> None:
    make_drawn(SMALL, tmp_path / "again")
    assert content(tmp_path / "again") == content(plain)
    make_drawn(replace(SMALL, seed=2), tmp_path / "other")
    assert content(tmp_path / "other")["scenes/000000.png"] != content(plain)["scenes/000000.png"]


def test_a_folder_says_what_it_was_made_of(plain: Path, rich: Path) -> None:
    assert json.loads((plain / "made.json").read_text()) == {
        "pictures": 12, "collages": 0, "texts": 12, "hard": 0.45, "size_px": 32, "seed": 1,
        "photos": False, "books": False,
    }  # fmt: skip
    made = json.loads((rich / "made.json").read_text())
    assert made["photos"] is made["books"] is True


@pytest.mark.usefixtures("refuse_making")
def test_a_finished_folder_is_left_as_it_is(plain: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in plain.rglob("*")}
    make_drawn(SMALL, plain)
    assert {path: path.stat().st_mtime_ns for path in plain.rglob("*")} == before


@pytest.mark.usefixtures("refuse_making")
def test_other_settings_are_refused_by_name(plain: Path, originals: Path) -> None:
    before = content(plain)
    with pytest.raises(DataError) as caught:
        make_drawn(replace(SMALL, pictures=13, hard=0.5), plain)
    assert str(caught.value) == (
        f"{plain}: holds data made with other settings (pictures 12, not 13; hard 0.45, not 0.5); "
        "choose another folder"
    )
    with pytest.raises(DataError, match="photos false, not true"):
        make_drawn(replace(SMALL, photos=originals), plain)
    assert content(plain) == before


@pytest.mark.usefixtures("refuse_making")
@pytest.mark.parametrize("text", ["", "{", "[]", "\udc80"])
def test_settings_that_cannot_be_read_are_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "made.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=r"made.json: .*remove it to make the data anew"):
        make_drawn(SMALL, tmp_path)


def test_a_folder_that_was_not_finished_is_made_again(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "scenes").mkdir()
    (tmp_path / "scenes/000000.png").write_bytes(b"half")
    (tmp_path / "scenes.jsonl").write_text('{"id": "half')
    make_drawn(SMALL, tmp_path)
    assert content(tmp_path) == content(plain)


# Photographs and books


def test_photographs_are_reached_through_a_link(rich: Path, originals: Path) -> None:
    assert (rich / "originals").resolve() == originals.resolve()
    samples = list(Records(rich / "photos.jsonl", rich / "originals"))
    assert [sample.images[0].name for sample in samples] == ["0.png", "2.png"]
    assert all(image.exists() for sample in samples for image in sample.images)
    validation = Records(rich / "validation-photos.jsonl", rich / "originals")
    assert [sample.images[0].name for sample in validation] == ["1.png", "3.png"]
    assert len(Records(rich / "collages.jsonl")) == 10


def test_books_are_cut_into_pieces(rich: Path) -> None:
    pieces = [sample.text for sample in Records(rich / "books.jsonl")]
    assert {len(piece) for piece in pieces} == {drawing.BOOK_PIECE_CHARS}
    assert "".join(pieces).startswith("It was a dark and stormy night. It was")


@pytest.mark.usefixtures("refuse_making")
@pytest.mark.parametrize(
    "spell",
    [lambda p: p, lambda p: Path(os.path.relpath(p)), lambda p: p / "photos/.."],
    ids=["absolute", "relative", "roundabout"],
)
def test_a_folder_of_photographs_may_be_written_in_any_way(
    rich: Path, originals: Path, spell: Callable[[Path], Path]
) -> None:
    photos, books = spell(originals), spell(originals) / "books"
    make_drawn(replace(SMALL, collages=10, photos=photos, books=books), rich)
    assert (rich / "originals").resolve() == originals.resolve()


@pytest.mark.usefixtures("refuse_making")
def test_the_link_follows_photographs_that_were_moved(
    rich: Path, originals: Path, tmp_path: Path
) -> None:
    settings = replace(SMALL, collages=10, photos=originals, books=originals / "books")
    moved = tmp_path / "moved"
    moved.symlink_to(originals)
    (rich / "originals").unlink()
    (rich / "originals").symlink_to(tmp_path / "gone")
    make_drawn(replace(settings, photos=moved), rich)
    assert (rich / "originals").resolve() == originals.resolve()


def test_records_that_were_not_made_are_known(plain: Path, rich: Path) -> None:
    both = ("", "validation-")
    photographic = {
        f"{prefix}{kind}{end}.jsonl"
        for prefix in both for kind in ("photos", "collages") for end in ("", "-questions")
    }  # fmt: skip
    assert files_left_out(plain) - files_left_out(rich) == photographic | {"books.jsonl"}
    assert {path.name for path in rich.glob("*.jsonl")} == FILES - files_left_out(rich)


def test_a_folder_without_photographs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        make_drawn(replace(SMALL, photos=tmp_path), tmp_path / "data")
    assert str(caught.value).startswith(f"{tmp_path}: no labelled photographs; ")
    assert not (tmp_path / "data").exists()
