"""The whole journey in miniature: drawn data, four stages, a model that answers."""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

import lapilli
from lapilli.checkpoints import native
from lapilli.config import load_toml
from lapilli.errors import CheckpointError, ConfigError, DataError
from lapilli.train import stages
from lapilli.train.recipe import Recipe
from lapilli.train.stages import run_stage

Recipes = Callable[..., Recipe]
SCENES = {
    "sources": [{"path": "scenes.jsonl"}],
    "validation": [{"path": "validation-scenes.jsonl"}],
}
WORDS = {"sources": [{"path": "text.jsonl"}], "validation": [{"path": "validation-text.jsonl"}]}
QUESTIONS = {
    "sources": [{"path": "scenes-questions.jsonl", "weight": 0.8}, {"path": "text.jsonl"}],
    "validation": [{"path": "validation-scenes-questions.jsonl"}],
}


def stage(learn: dict[str, float], kind: str = "conversation", steps: int = 3) -> dict[str, Any]:
    return {"kind": kind, "steps": steps, "batch": 2, "learn": learn}


STAGES: dict[str, dict[str, Any]] = {
    "1-vision": {"data": SCENES, "stage": stage({"vision_tower": 3e-3}, "vision")},
    "2-language": {
        "model": {"vocab_size": 400, "words_from": ["text.jsonl"]},
        "data": WORDS,
        "stage": stage({"language_model": 3e-3}),
    },
    "3-align": {
        "model": {"start": "2-language", "vision_tower": "1-vision"},
        "data": SCENES,
        "stage": stage({"projector": 3e-3}),
    },
    "4-instruct": {
        "model": {"start": "3-align"},
        "data": QUESTIONS,
        "stage": stage({"projector": 2e-3, "language_model": 2e-3}),
    },
}


@pytest.fixture(scope="module")
def recipes(recipe: Recipes) -> dict[str, Recipe]:
    return {name: recipe(**tables) for name, tables in STAGES.items()}


@pytest.fixture(scope="module")
def runs(drawn: Path, recipes: dict[str, Recipe], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all stages were run."""
    out = tmp_path_factory.mktemp("runs")
    for name, recipe in recipes.items():
        run_stage(recipe, drawn, out / name)
    return out


def weights(runs: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(runs / name / "model/model.safetensors")


def changed(runs: Path, before: str, after: str) -> set[str]:
    """Parts whose weights differ between two stages."""
    old, new = weights(runs, before), weights(runs, after)
    assert old.keys() == new.keys()
    return {name.partition(".")[0] for name in old if not torch.equal(old[name], new[name])}


def test_the_model_of_the_last_stage_answers(runs: Path, drawn: Path) -> None:
    model, processor = lapilli.load(str(runs / "4-instruct/model"))
    picture = drawn / "scenes/000000.png"
    inputs = processor([{"role": "user", "content": "<image>\nWhat is this?"}], images=[picture])
    with torch.no_grad():
        logits = model(**inputs.to(model.device, model.dtype))
    assert logits.shape[:2] == inputs.input_ids.shape
    assert logits.isfinite().all()
    assistant = lapilli.MultimodalAssistant(runs / "4-instruct/model", device="cpu")
    answers = [assistant.query(picture, "What is this?", max_new_tokens=8) for _ in range(2)]
    assert isinstance(answers[0], str)
    assert answers[0] == answers[1]


def test_each_stage_moves_what_its_recipe_names(runs: Path) -> None:
    assert changed(runs, "2-language", "3-align") == {"vision_tower", "projector"}
    assert changed(runs, "3-align", "4-instruct") == {"projector", "language_model"}


def test_align_takes_over_the_tower_that_was_trained(runs: Path) -> None:
    tower = weights(runs, "1-vision")
    taken = weights(runs, "4-instruct")
    assert tower
    assert all(torch.equal(value, taken[f"vision_tower.{k}"]) for k, value in tower.items())


def test_what_made_a_model_lies_beside_it(runs: Path, recipes: dict[str, Recipe]) -> None:
    for name, recipe in recipes.items():
        assert load_toml(runs / name / "recipe.toml", Recipe) == recipe
        assert {"lapilli", "torch", "python"} <= json.loads(
            (runs / name / "versions.json").read_text()
        ).keys()
        rows = [json.loads(s) for s in (runs / name / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == [3, 3]
        assert "loss" in rows[0] and any(key.endswith(("/loss", "/iou")) for key in rows[1])


def test_validation_is_reported_by_kind(runs: Path) -> None:
    last = (runs / "4-instruct/metrics.jsonl").read_text().splitlines()[-1]
    kinds = {key.removeprefix("scenes-questions/") for key in json.loads(last)}
    assert {"loss", "count", "relation", "caption"} <= kinds


def test_a_model_folder_holds_no_code(runs: Path) -> None:
    names = {path.name for path in (runs / "4-instruct/model").iterdir()}
    assert names == {
        "config.json", "model.safetensors", "tokenizer.json", "processor.json",
        "chat_template.jinja",
    }  # fmt: skip
    kinds = {value.dtype for value in weights(runs, "4-instruct").values()}
    assert kinds == {torch.bfloat16}


def test_the_context_of_a_new_model_is_its_decoders(runs: Path) -> None:
    model, processor = native.load(runs / "2-language/model")
    assert processor.prompt.max_tokens == model.spec.decoder.max_positions == 512


def test_a_stage_run_again_gives_the_same_weights(
    runs: Path, drawn: Path, recipes: dict[str, Recipe], tmp_path: Path
) -> None:
    for name in ("1-vision", "2-language"):
        run_stage(recipes[name], drawn, tmp_path / name)
        first, again = weights(runs, name), weights(tmp_path, name)
        assert all(torch.equal(first[key], again[key]) for key in first)


def test_a_model_is_written_after_a_full_disk_without_training_again(
    runs: Path,
    drawn: Path,
    recipes: dict[str, Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    out = tmp_path / "2-language"
    monkeypatch.setattr(native, "save", full)
    with pytest.raises(CheckpointError, match=r"2-language/model: cannot be written \(.*No space"):
        run_stage(recipes["2-language"], drawn, out)
    assert not (out / "model").exists()
    monkeypatch.undo()
    monkeypatch.setattr(stages.loop, "_step", None)  # nothing is left to be trained
    run_stage(recipes["2-language"], drawn, out)
    first, again = weights(runs, "2-language"), weights(tmp_path, "2-language")
    assert all(torch.equal(first[key], again[key]) for key in first)


def test_a_tower_of_another_shape_is_refused(
    runs: Path, drawn: Path, recipe: Recipes, tmp_path: Path
) -> None:
    shutil.copytree(runs / "2-language/model", tmp_path / "2-language/model")
    tables = STAGES["1-vision"] | {"model": {"vision": {"width": 16, "image_size": 32,
        "patch_size": 8, "num_layers": 2, "num_heads": 2, "mlp_width": 32}}}  # fmt: skip
    run_stage(recipe(**tables), drawn, tmp_path / "1-vision")
    with pytest.raises(ConfigError, match=r"Make \[model.vision\] of the two recipes the same"):
        run_stage(recipe(**STAGES["3-align"]), drawn, tmp_path / "3-align")


def test_an_earlier_stage_that_is_missing_is_named(
    drawn: Path, recipe: Recipes, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="2-language: neither a model folder nor a"):
        run_stage(recipe(**STAGES["3-align"]), drawn, tmp_path / "3-align")


@pytest.mark.parametrize("name", STAGES)
def test_records_that_are_missing_are_named(
    runs: Path, recipe: Recipes, tmp_path: Path, name: str
) -> None:
    for earlier in ("1-vision", "2-language", "3-align"):
        (tmp_path / earlier).mkdir()
        (tmp_path / earlier / "model").symlink_to(runs / earlier / "model")
    with pytest.raises(DataError, match=r"nowhere/.*jsonl: cannot be read \(No such file"):
        run_stage(recipe(**STAGES[name]), tmp_path / "nowhere", tmp_path / f"{name}-again")


def test_a_blind_stage_shows_no_pictures(
    runs: Path, drawn: Path, recipe: Recipes, tmp_path: Path
) -> None:
    (tmp_path / "3-align").symlink_to(runs / "3-align")
    blind = [source | {"is_blind": True} for source in QUESTIONS["sources"]]
    tables = STAGES["4-instruct"] | {"data": {"sources": blind}}
    run_stage(recipe(**tables), drawn, tmp_path / "blind")
    written = tomllib.loads((tmp_path / "blind/recipe.toml").read_text())
    assert all(source["is_blind"] for source in written["data"]["sources"])
    before, after = weights(tmp_path, "3-align"), weights(tmp_path, "blind")
    moved = {k.partition(".")[0] for k in before if not torch.equal(before[k], after[k])}
    assert moved == {"language_model"}, "a projector without pictures has nothing to learn from"
