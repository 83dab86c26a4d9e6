"""From files of records to batches: groups, pictures in their places, chance by seed."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lapilli.data.augment import Augmentation
from lapilli.data.conversations import Groups, bundle_group, encode, make_batch
from lapilli.data.records import Records
from lapilli.errors import DataError
from lapilli.inputs import Inputs
from lapilli.processor.images import ImageSettings
from lapilli.processor.processor import Processor, PromptSettings
from lapilli.processor.tokenizer import train_tokenizer
from lapilli.tiling import Tiling

PLACES = 4
SHADES = {"dark.png": 40, "middle.png": 120, "light.png": 220}


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor(
        train_tokenizer(["What is this? How light is it?"], 300),
        ImageSettings(8, "squash", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        PromptSettings(PLACES, max_tokens=200),
        files("lapilli").joinpath("assets/tiny/chat_template.jinja").read_text(),
    )


def row(image: str, question: str, answer: str = "yes", **more: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
    return {"id": f"{image}: {question}", "image": image, "conversations": turns, **more}


ROWS = [
    row("dark.png", "What is this?"),
    row("dark.png", "How light is it?"),
    row("middle.png", "What is this?"),
    row("light.png", "What is this?" * 3),
    row("light.png", "How light is it?" * 3),
    row("dark.png", "And now?"),
]


def records(folder: Path, *rows: dict[str, Any]) -> Records:
    for name, shade in SHADES.items():
        Image.new("RGB", (10, 6), (shade,) * 3).save(folder / name)
    path = folder / "records.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return Records(path)


def same(first: Inputs, second: Inputs) -> bool:
    return list(first.keys()) == list(second.keys()) and all(
        torch.equal(first[name], second[name])
        for name in first.keys()  # noqa: SIM118
    )


def test_neighbours_about_one_picture_are_a_group(tmp_path: Path) -> None:
    groups = Groups(records(tmp_path, *ROWS))
    assert len(groups) == 4
    ids = [[sample.id for sample in groups[index]] for index in range(4)]
    assert [len(group) for group in ids] == [2, 1, 2, 1]
    assert [sample for group in ids for sample in group] == [r["id"] for r in ROWS]


def test_a_blind_source_shows_no_picture(tmp_path: Path, processor: Processor) -> None:
    groups = Groups(records(tmp_path, *ROWS), is_blind=True)
    assert len(groups) == 4
    batch = make_batch([(groups, 0)], processor, 200, None)
    assert batch.pixel_values is None
    assert not (batch.input_ids == processor.image_token_id).any()
    words = processor.decode(batch.input_ids[0].tolist())
    assert "What is this?" in words and "How light is it?" in words


def test_pictures_come_in_the_order_of_their_places(tmp_path: Path, processor: Processor) -> None:
    groups = Groups(records(tmp_path, *ROWS))
    batch = make_batch([(groups, i) for i in (1, 0, 2)], processor, 150, None)
    assert batch.pixel_values is not None
    order = [groups[i][0].images[0].name for i in (1, 0, 2)]
    shades = [round(float(p.mean()) * 255) for p in batch.pixel_values]
    assert shades != [SHADES[name] for name in order], "packing should have moved a picture"
    # A group is known by the words that follow its picture.
    lengths = {len(bundle_group(groups[i], processor, 150, None)): i for i in (1, 0, 2)}
    seen = []
    for groups_of_row in batch.groups:
        for group in range(int(groups_of_row.max()) + 1):
            seen.append(groups[lengths[int((groups_of_row == group).sum())]][0].images[0].name)
    assert shades == [SHADES[name] for name in seen]
    assert int((batch.input_ids == processor.image_token_id).sum()) == 3 * PLACES


@pytest.mark.parametrize("tiles_several", [True, False])
def test_cut_pictures_bring_their_sizes_to_their_places(
    tmp_path: Path, processor: Processor, tiles_several: bool
) -> None:
    tiling = Tiling(8, 2, ((1, 2), (2, 1), (2, 2)), None, tiles_several)
    images = replace(processor.images, tiling=tiling)
    words = processor.words.tokenizer
    cutting = Processor(words, images, processor.prompt, processor.chat_template)
    both = row("dark.png", "<image>What is this?")
    both["image"] = ["dark.png", "light.png"]
    groups = Groups(records(tmp_path, *ROWS[:2], ROWS[3], both))
    batch = make_batch([(groups, i) for i in (1, 0, 2)], cutting, 250, None)
    assert batch.pixel_values is not None
    assert batch.image_sizes is not None and batch.num_views is not None
    counts = batch.num_views.tolist()
    assert sorted(counts) == ([3] * 4 if tiles_several else [1, 1, 3, 3])
    assert batch.image_sizes.tolist() == [[6, 10]] * 4
    cut = tiling.num_features((6, 10))
    places = sum(tiling.num_whole_features if n == 1 else cut for n in counts)
    assert int((batch.input_ids == cutting.image_token_id).sum()) == places
    shown = torch.stack([part[0] for part in batch.pixel_values.split(counts)])
    assert len({round(float(p.mean()) * 255) for p in shown}) == 2


def test_cut_pictures_are_not_changed_at_random(tmp_path: Path, processor: Processor) -> None:
    images = replace(processor.images, tiling=Tiling(8, 2, ((1, 2),)))
    words = processor.words.tokenizer
    cutting = Processor(words, images, processor.prompt, processor.chat_template)
    groups = Groups(records(tmp_path, *ROWS), Augmentation(light=0.3))
    with pytest.raises(DataError, match=r"dark\.png: the model cuts pictures by their size"):
        make_batch([(groups, 0)], cutting, 150, np.random.default_rng(0))
    assert make_batch([(groups, 0)], cutting, 150, None).pixel_values is not None


def test_chance_is_ruled_by_the_seed(tmp_path: Path, processor: Processor) -> None:
    questions = [row("dark.png", f"What is this? {number}") for number in range(8)]
    groups = Groups(records(tmp_path, *questions), Augmentation(light=0.3))

    def batch(seed: int | None) -> Inputs:
        rng = None if seed is None else np.random.default_rng(seed)
        return make_batch([(groups, 0)], processor, 60, rng)

    assert same(batch(1), batch(1))
    assert same(batch(None), batch(None))
    assert len({tuple(batch(seed).input_ids[0].tolist()) for seed in range(9)}) > 3
    pixels = batch(None).pixel_values
    assert pixels is not None and float(pixels.mean()) == pytest.approx(40 / 255, abs=1e-3)
    assert all(b.input_ids.shape[1] <= 60 for b in (batch(None), batch(1)))


def test_running_text_is_learned_whole(tmp_path: Path, processor: Processor) -> None:
    (sample,) = records(tmp_path, {"id": "book", "text": "What is this?"})
    encoded = encode(sample, processor)
    assert processor.decode(encoded.ids) == "What is this?"
    assert encoded.labels == encoded.ids


def test_answers_alone_are_learned(tmp_path: Path, processor: Processor) -> None:
    (sample,) = records(tmp_path, row("dark.png", "What is this?", "dark"))
    encoded = encode(sample, processor)
    learned = [i for i, label in zip(encoded.ids, encoded.labels, strict=True) if label == i]
    assert learned == [*processor.words.encode("dark", with_specials=False), processor.end_id]


def test_a_record_without_an_answer_is_named(tmp_path: Path, processor: Processor) -> None:
    silent = {"id": "s1", "conversations": [{"from": "human", "value": "Hello?"}]}
    with pytest.raises(DataError, match=r"record s1: no words .* to learn\. Remove it\."):
        encode(records(tmp_path, silent)[0], processor)


def test_a_record_longer_than_the_context_is_named(tmp_path: Path, processor: Processor) -> None:
    (sample,) = records(tmp_path, row("dark.png", "What? " * 200) | {"id": "s2"})
    with pytest.raises(DataError, match=r"record s2: .* tokens, the model holds 200"):
        encode(sample, processor)
