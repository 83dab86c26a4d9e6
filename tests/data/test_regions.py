"""What each patch is to learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lapilli.data.regions import BACKGROUND_WEIGHT, UNKNOWN, Vocabulary, patch_targets

GRID = 4
VOCABULARY = Vocabulary(
    {"name": ("background", "circle", "star"), "color": ("blue", "red"), "size": ("large", "small")}
)


def thing(name: str, *box: float, **slots: str) -> dict[str, Any]:
    return {"name": name, "box": list(box), **slots}


def targets(
    *things: dict[str, Any], is_complete: bool = True
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    return patch_targets(things, VOCABULARY, GRID, is_complete=is_complete)


def test_the_vocabulary_holds_the_words_that_occur() -> None:
    things = [thing("star", color="red"), thing("circle", color="blue"), thing("star", fine="Tim")]
    words = Vocabulary.gather(things).words
    assert words == {
        "name": ("background", "circle", "star"),
        "color": ("blue", "red"),
        "fine": ("Tim",),
    }


def test_a_word_that_is_absent_or_new_is_unknown() -> None:
    known = VOCABULARY.classes(thing("star", color="red", size="huge"))
    assert known == {"name": 2, "color": 1, "size": UNKNOWN}
    assert VOCABULARY.classes(thing("heart"))["name"] == UNKNOWN


def test_patches_learn_the_object_that_they_lie_on() -> None:
    classes, _, _ = targets(thing("star", 0.25, 0.0, 0.75, 0.25, color="blue"))
    expected = np.zeros((GRID, GRID), int)
    expected[0, 1:3] = 2
    assert (classes["name"].reshape(GRID, GRID) == expected).all()
    is_star = expected.ravel() > 0
    assert (classes["color"][is_star] == 0).all()
    assert (classes["color"][~is_star] == UNKNOWN).all()
    assert (classes["size"] == UNKNOWN).all()


def test_a_patch_belongs_to_the_object_that_covers_most_of_it() -> None:
    left, right = thing("star", 0, 0, 0.35, 1), thing("circle", 0.35, 0, 1, 1, color="red")
    for things in ((left, right), (right, left)):
        classes, _, _ = targets(*things)
        assert (classes["name"].reshape(GRID, GRID) == [2, 1, 1, 1]).all()
        assert (classes["color"].reshape(GRID, GRID) == [UNKNOWN, 1, 1, 1]).all()


def test_a_touched_patch_stays_background_and_a_tiny_object_owns_its_patch() -> None:
    classes, _, _ = targets(
        thing("star", 0.0, 0.0, 0.28, 0.25), thing("circle", 0.6, 0.6, 0.62, 0.62)
    )
    assert classes["name"].tolist() == [2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0]


def test_unlisted_objects_leave_the_background_unknown() -> None:
    classes, _, _ = targets(thing("star", 0, 0, 0.25, 0.25), is_complete=False)
    assert classes["name"].tolist() == [2] + [UNKNOWN] * 15


def test_every_patch_of_an_object_has_its_box() -> None:
    box = (0.1, 0.3, 0.9, 0.7)
    _, boxes, _ = targets(thing("star", *box))
    is_object = ~np.isnan(boxes[:, 0])
    assert is_object.reshape(GRID, GRID)[:, 0].tolist() == [False, True, True, False]
    assert boxes[is_object] == pytest.approx(np.tile(box, (8, 1)))


def test_an_object_counts_as_the_root_of_its_patches() -> None:
    large, small = thing("star", 0, 0, 0.5, 1), thing("circle", 0.5, 0, 0.75, 0.25)
    classes, _, weights = targets(large, small)
    sums = [weights[classes["name"] == c].sum() for c in (2, 1, 0)]
    assert sums == pytest.approx([8**0.5, 1, BACKGROUND_WEIGHT * 7**0.5])


def test_a_picture_without_objects_is_background() -> None:
    classes, boxes, weights = targets()
    assert (classes["name"] == 0).all()
    assert np.isnan(boxes).all()
    assert weights.sum() == pytest.approx(BACKGROUND_WEIGHT * GRID)
