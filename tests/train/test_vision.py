"""Vision pretraining: its losses, its figures, and what it refuses to learn from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from lapilli.config import from_dict
from lapilli.data.records import Records
from lapilli.data.regions import UNKNOWN
from lapilli.errors import DataError
from lapilli.model.spec import VisionSpec
from lapilli.processor.images import ImageSettings
from lapilli.train import loop, vision
from lapilli.train.recipe import Recipe, SourceRecipe
from lapilli.train.vision import (
    RegionBatch,
    Source,
    VisionLearner,
    box_loss,
    iou,
    slot_loss,
)

Recipes = Callable[..., Recipe]
SETTINGS = ImageSettings(32, "squash", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ((0.2, 0.2, 0.6, 0.6), 1.0),
        ((0.2, 0.2, 0.6, 0.4), 0.5),
        ((0.4, 0.2, 0.8, 0.6), 1 / 3),
        ((0.4, 0.4, 0.8, 0.8), 1 / 7),
        ((0.7, 0.2, 0.9, 0.6), 0.0),
        ((0.7, 0.7, 0.9, 0.9), 0.0),
        ((0.5, 0.5, 0.3, 0.3), 0.0),
    ],
    ids=["same", "half", "beside", "corner", "apart", "far apart", "inside out"],
)
def test_overlap_is_the_shared_area_over_the_whole(
    other: tuple[float, float, float, float], expected: float
) -> None:
    first, second = torch.tensor([0.2, 0.2, 0.6, 0.6]), torch.tensor(other)
    assert iou(first, second).item() == pytest.approx(expected, abs=1e-5)
    assert iou(second, first).item() == pytest.approx(expected, abs=1e-5)


def test_a_box_costs_its_distance_and_its_missing_overlap() -> None:
    target = torch.tensor([0.2, 0.2, 0.6, 0.6]).expand(1, 2, 4)
    predicted = target.clone()
    weights = torch.ones(1, 2)
    assert box_loss(predicted, target, weights).item() == pytest.approx(0, abs=1e-6)
    predicted[0, 0, 3] -= 0.2
    expected = (5 * 0.2 + 0.5) / 2
    assert box_loss(predicted, target, weights).item() == pytest.approx(expected, abs=1e-5)


def test_patches_without_an_object_cost_no_box() -> None:
    target = torch.tensor([0.2, 0.2, 0.6, 0.6]).repeat(1, 3, 1)
    predicted = target.clone().requires_grad_()
    target[0, 1:] = torch.nan
    loss = box_loss(predicted, target, torch.ones(1, 3))
    assert loss.item() == pytest.approx(0, abs=1e-6)
    wrong = torch.tensor([0.1, 0.1, 0.5, 0.5]).repeat(1, 3, 1).requires_grad_()
    box_loss(wrong, target, torch.ones(1, 3)).backward()
    assert wrong.grad is not None and wrong.grad.isfinite().all()
    assert (wrong.grad[0, 1:] == 0).all() and (wrong.grad[0, 0] != 0).all()
    assert box_loss(wrong, torch.full((1, 3, 4), torch.nan), torch.ones(1, 3)).item() == 0


def test_a_slot_costs_the_weighted_mean_over_known_patches() -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 4, 3, requires_grad=True)
    classes = torch.tensor([[0, 2, UNKNOWN, 1]])
    weights = torch.tensor([[1.0, 0.5, 3.0, 0.0]])
    loss = slot_loss(logits, classes, weights)
    each = [
        nn.functional.cross_entropy(logits[0, i], classes[0, i], label_smoothing=0.05).item()
        for i in (0, 1)
    ]
    assert loss.item() == pytest.approx((each[0] + 0.5 * each[1]) / 1.5, abs=1e-5)
    loss.backward()
    assert logits.grad is not None
    assert (logits.grad[0, 2:] == 0).all() and (logits.grad[0, :2] != 0).any()


def test_a_slot_that_nobody_knows_costs_nothing() -> None:
    logits = torch.randn(1, 4, 3)
    assert slot_loss(logits, torch.full((1, 4), UNKNOWN), torch.ones(1, 4)).item() == 0


# The learner


@pytest.fixture
def learner(drawn: Path, recipe: Recipes) -> VisionLearner:
    made = recipe(
        data={"sources": [{"path": "scenes.jsonl", "is_mirrored": True, "light": 0.1}]},
        stage={"kind": "vision", "steps": 30, "batch": 8, "learn": {"vision_tower": 1e-2}},
        run={"evaluate_every": 30, "save_every": 30},
    )
    spec = from_dict(VisionSpec, made.model.vision, "vision")
    torch.manual_seed(0)
    (source,) = made.data.sources
    looked_at = replace(source, path=Path("validation-scenes.jsonl"))
    return VisionLearner(
        made,
        spec,
        SETTINGS,
        [Source(source, Records(drawn / source.path))],
        [Source(looked_at, Records(drawn / looked_at.path))],
    )


def test_a_step_sees_the_same_whenever_it_is_asked_for(learner: VisionLearner) -> None:
    first, again, other = learner.batch(3), learner.batch(3), learner.batch(4)
    assert torch.equal(first.pixels, again.pixels)
    assert all(torch.equal(first.classes[slot], again.classes[slot]) for slot in first.classes)
    assert not torch.equal(first.pixels, other.pixels)
    assert first.pixels.shape == (8, 3, 32, 32)
    assert -1 <= first.pixels.min() < first.pixels.max() <= 1


def test_training_lowers_the_loss(learner: VisionLearner, tmp_path: Path) -> None:
    before = learner.loss(learner.batch(0))[0].item()
    loop.run(learner, learner.recipe, tmp_path)
    after, weight, parts = learner.loss(learner.batch(0))
    assert after.item() < 0.8 * before
    assert weight == 8
    assert set(parts) == {"name", "color", "size", "box", "picture"}
    assert after.item() == pytest.approx(sum(parts.values()), rel=1e-4)


class Oracle(nn.Module):
    """Knows what is given of the batches that it is shown, in all slots but one."""

    def __init__(self, batches: list[RegionBatch], sizes: dict[str, int], wrong: str) -> None:
        super().__init__()
        self.batches, self.sizes, self.wrong = iter(batches), sizes, wrong

    def forward(self, pixels: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        batch = next(self.batches)
        assert torch.equal(pixels, batch.pixels)
        logits = {
            slot: nn.functional.one_hot(classes.clamp(min=0), self.sizes[slot]).float()
            for slot, classes in batch.classes.items()
        }
        logits[self.wrong] = -logits[self.wrong]
        return logits, batch.boxes.nan_to_num(), batch.names


def test_figures_tell_how_much_is_known(learner: VisionLearner) -> None:
    (source,) = learner.validation
    rows = [(source, index) for index in range(len(source.records))]
    batch = learner.collate(rows, None)
    sizes = {slot: len(words) for slot, words in learner.vocabulary.words.items()}
    learner.module = Oracle([batch], sizes, "color")
    assert learner.evaluate() == pytest.approx(
        {
            "validation-scenes/name": 1,
            "validation-scenes/color": 0,
            "validation-scenes/size": 1,
            "validation-scenes/iou": 1,
            "validation-scenes/picture": 1,
        },
        abs=1e-4,
    )


def test_pictures_are_not_changed_for_evaluation(learner: VisionLearner) -> None:
    (source,) = learner.validation
    first, again = (learner.collate([(source, 0)], None) for _ in "ab")
    assert torch.equal(first.pixels, again.pixels)
    image = np.asarray(Image.open(source.records[0].images[0]).convert("RGB")) / 255
    expected = torch.from_numpy((image - 0.5) / 0.5).permute(2, 0, 1).float()
    torch.testing.assert_close(first.pixels[0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"objects": []}, "a vision stage needs image and objects"),
        ({"image": "a.png"}, "a vision stage needs image and objects"),
        ({"image": "a.png", "objects": [{"name": "star"}]}, "is no object with a box"),
        ({"image": "a.png", "objects": ["star"]}, "'star' is no object with a box"),
        ({"image": "a.png", "objects": [{"box": [0, 0, 1]}]}, "is no object with a box"),
        ({"image": "a.png", "objects": [{"box": [0, 0, 99, 99]}]}, "in 0-1 or remove it"),
    ],
)
@pytest.mark.parametrize("is_validation", [False, True])
def test_a_row_without_objects_is_told_before_training(
    learner: VisionLearner,
    write_rows: Callable[..., Path],
    row: dict[str, Any],
    message: str,
    is_validation: bool,
) -> None:
    path = write_rows({"image": "a.png", "objects": []}, row)
    faulty = Source(SourceRecipe(path), Records(path))
    sources, validation = learner.sources, [faulty]
    if not is_validation:
        sources, validation = validation, sources
    with pytest.raises(DataError) as caught:
        VisionLearner(learner.recipe, learner.spec, SETTINGS, sources, validation)
    assert str(caught.value).startswith(f"{path}, row 1: ")
    assert message in str(caught.value)


def test_pictures_are_kept_in_memory_up_to_a_limit(
    drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path("scenes.jsonl")
    source = Source(SourceRecipe(path), Records(drawn / path))
    monkeypatch.setattr(vision, "CACHED_BYTES", 2 * 32 * 32 * 3)
    for index in (0, 1, 2, 0, 2):
        image, sample = source.get(index)
        assert image.size == (32, 32)
        assert sample.id == source.records[index].id
    assert list(source.cached) == [0, 1]
