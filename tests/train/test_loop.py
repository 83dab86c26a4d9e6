"""The loop: rates, what is asked of a learner, and what is written down."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lapilli.train import loop
from lapilli.train.loop import rate_share
from lapilli.train.recipe import Recipe, StageRecipe

Recipes = Callable[..., Recipe]


class Slope:
    """One weight with a constant gradient; writes down what is asked of it."""

    def __init__(self, gradient: float = 1.0) -> None:
        self.module = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.module.weight)
        self.gradient = gradient
        self.seen: list[Any] = []

    def parts(self) -> dict[str, nn.Module]:
        return {"language_model": self.module}

    def batch(self, step: int) -> int:
        return step

    def loss(self, batch: int) -> tuple[Tensor, float, dict[str, float]]:
        assert self.module.training
        self.seen.append(batch)
        return self.module.weight.sum() * self.gradient, 3.0, {"figure": 1 / 3}

    def evaluate(self) -> dict[str, float]:
        assert not self.module.training
        assert not torch.is_grad_enabled()
        self.seen.append("evaluated")
        return {"validation/loss": 0.25}


def stage(steps: int = 100, **changes: Any) -> StageRecipe:
    return StageRecipe("conversation", steps, 2, {"language_model": 1e-2}, **changes)


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_the_rate_rises_then_falls_along_a_cosine() -> None:
    shares = [rate_share(stage(warmup=0.1, final_rate=0.2), step) for step in range(100)]
    assert shares[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert shares[9] == shares[10] == 1
    assert all(a > b for a, b in pairwise(shares[10:]))
    assert shares[55] == pytest.approx(0.6)
    assert 0.2 < shares[99] < 0.202


def test_the_rate_may_stay_at_its_peak() -> None:
    shares = [rate_share(stage(warmup=0.02, decay="constant"), step) for step in range(100)]
    assert shares == [0.5, *[1.0] * 99]


@pytest.mark.parametrize("warmup", [0.0, 1.0])
def test_a_rate_without_warmup_or_without_decay_stays_within_its_peak(warmup: float) -> None:
    shares = [rate_share(stage(3, warmup=warmup), step) for step in range(3)]
    assert all(0 < share <= 1 for share in shares)


def test_steps_come_in_order_and_evaluations_between_them(recipe: Recipes, tmp_path: Path) -> None:
    learner = Slope()
    loop.run(learner, recipe(stage={"steps": 5}, run={"evaluate_every": 2}), tmp_path)
    assert learner.seen == [0, 1, "evaluated", 2, 3, "evaluated", 4, "evaluated"]


def test_figures_are_written_as_json_lines(recipe: Recipes, tmp_path: Path) -> None:
    changes = {"steps": 25, "warmup": 0.0, "decay": "constant"}
    loop.run(Slope(), recipe(stage=changes, run={"evaluate_every": 20}), tmp_path)
    trained = [row for row in rows(tmp_path) if "loss" in row]
    assert [row["step"] for row in trained] == [20, 25]
    assert trained[0]["figure"] == 0.333333
    assert {"loss", "grad_norm", "rate_share", "examples_per_s"} <= trained[0].keys()
    evaluated = [row for row in rows(tmp_path) if "validation/loss" in row]
    assert evaluated == [
        {"step": 20, "validation/loss": 0.25},
        {"step": 25, "validation/loss": 0.25},
    ]


def test_progress_is_shown_on_stderr(
    recipe: Recipes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loop.run(Slope(), recipe(stage={"steps": 5}), tmp_path / "4-instruct")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert all(word in shown.err for word in ("4-instruct", "5/5", "loss", "examples/s"))


def test_the_rate_of_the_recipe_is_what_moves_a_weight(recipe: Recipes, tmp_path: Path) -> None:
    learner = Slope()
    changes = {"steps": 1, "warmup": 0.0, "learn": {"language_model": 0.125}}
    loop.run(learner, recipe(stage=changes, optimizer={"name": "adamw"}), tmp_path)
    assert learner.module.weight.item() == pytest.approx(-0.125)


def test_large_gradients_are_clipped(
    recipe: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = Slope(gradient=50.0)
    used: list[float] = []
    monkeypatch.setattr(
        torch.optim.Optimizer, "zero_grad", lambda *_, **__: used.append(weight.grad.item())
    )
    weight = learner.module.weight
    changes = {"name": "adamw", "max_grad_norm": 2.0}
    loop.run(learner, recipe(stage={"steps": 1}, optimizer=changes), tmp_path)
    assert used == pytest.approx([2.0], rel=1e-4)
    assert rows(tmp_path)[0]["grad_norm"] == 50.0


def test_a_fault_in_making_a_batch_ends_the_run(recipe: Recipes, tmp_path: Path) -> None:
    class Faulty(Slope):
        def batch(self, step: int) -> int:
            if step == 2:
                raise ValueError("no third batch")
            return step

    learner = Faulty()
    with pytest.raises(ValueError, match="no third batch"):
        loop.run(learner, recipe(stage={"steps": 5}), tmp_path)
    assert learner.seen == [0, 1]
