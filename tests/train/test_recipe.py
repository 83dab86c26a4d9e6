"""Recipes are checked when they are read, and the shipped ones fit together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lapilli.app.drawing import FILES, DrawnData
from lapilli.config import dump_toml, load_toml
from lapilli.errors import ConfigError
from lapilli.train.recipe import Recipe

TINY = sorted((Path(__file__).parents[2] / "recipes/tiny").glob("[0-9]*.toml"))
Recipes = Callable[..., Recipe]


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"data": {"sources": []}}, "data.sources is empty; name records to learn from"),
        ({"stage": {"learn": {}}}, "stage.learn is empty; give a part that learns"),
        ({"stage": {"steps": 0}}, "stage.steps is 0; give 1 or more"),
        ({"run": {"save_every": 0}}, "run.save_every is 0; give 1 or more"),
        ({"run": {"evaluate_every": -1}}, "run.evaluate_every is -1; give 1 or more"),
        ({"run": {"processes": 0}}, "run.processes is 0; give 1 or more"),
        ({"run": {"processes": 3}}, "stage.batch 2 is below run.processes 3"),
        ({"data": {"sources": [{"path": "a.jsonl", "weight": 0}]}}, "leave a.jsonl out"),
        ({"data": {"sources": [{"path": "a.jsonl", "weight": float("nan")}]}}, "weight is nan"),
        ({"model": {"vision": {"widht": 32}}}, "unknown key widht; did you mean width"),
        (
            {"model": {"decoder": {"num_layer": 2}}},
            "unknown key num_layer; did you mean num_layers",
        ),
        ({"model": {"vision": {"width": 33, "num_heads": 2}}}, "width 33 does not divide into 2"),
        ({"stage": {"kind": "align"}}, "stage.kind must be one of 'vision', 'conversation'"),
        ({"stage": {"stpes": 3}}, "unknown key stage.stpes; did you mean stage.steps"),
    ],
)
def test_a_recipe_that_cannot_run_is_refused(
    recipe: Recipes, tables: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        recipe(**tables)
    assert message in str(caught.value)
    assert str(caught.value).startswith("test: ")


def test_a_recipe_survives_being_written(recipe: Recipes, tmp_path: Path) -> None:
    made = recipe(model={"start": "2-language"}, run={"seed": 7})
    (tmp_path / "recipe.toml").write_text(dump_toml(made))
    assert load_toml(tmp_path / "recipe.toml", Recipe) == made


@pytest.mark.parametrize("path", TINY, ids=lambda path: path.stem)
def test_a_shipped_recipe_is_whole(path: Path) -> None:
    made = load_toml(path, Recipe)
    before = {other.stem for other in TINY if other.stem < path.stem}
    assert {str(s) for s in (made.model.start, made.model.vision_tower) if s} <= before
    named = [s.path for s in (*made.data.sources, *made.data.validation)]
    assert {str(name) for name in (*named, *made.model.words_from)} <= FILES
    assert all(str(s.path).startswith("validation-") for s in made.data.validation)
    assert not any(str(s.path).startswith("validation-") for s in made.data.sources)


def test_the_shipped_stages_are_four() -> None:
    assert [path.stem for path in TINY] == ["1-vision", "2-language", "3-align", "4-instruct"]
    assert load_toml(TINY[0].with_name("data.toml"), DrawnData).pictures > 0
    towers = [load_toml(path, Recipe).model.vision for path in TINY[:2]]
    assert towers[0] == towers[1]
