"""A run that was stopped goes on as if it had not been."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lapilli.errors import CheckpointError
from lapilli.train import loop, resume
from lapilli.train.optimizers import build_optimizers
from lapilli.train.recipe import Recipe

STEPS, SAVE_EVERY = 7, 2
Recipes = Callable[..., Recipe]


class Regression:
    """Learns a small network; dies in the step that it is told to."""

    def __init__(self, dies_at: int | None = None, width: int = 6) -> None:
        torch.manual_seed(0)
        self.module = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 1))
        self.dies_at = dies_at
        self.steps: list[int] = []

    def parts(self) -> dict[str, nn.Module]:
        return {"language_model": self.module}

    def batch(self, step: int) -> tuple[int, Tensor]:
        return step, torch.randn(8, 4, generator=torch.Generator().manual_seed(step))

    def loss(self, batch: tuple[int, Tensor]) -> tuple[Tensor, float, dict[str, float]]:
        step, x = batch
        self.steps.append(step)
        if step == self.dies_at:
            raise KeyboardInterrupt
        return (self.module(x) - x.sum(1, keepdim=True)).pow(2).mean(), 8.0, {}

    def evaluate(self) -> dict[str, float]:
        return {"validation": 1.0}

    def weights(self) -> dict[str, Tensor]:
        return {k: v.clone() for k, v in self.module.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.fixture
def short(recipe: Recipes) -> Callable[..., Recipe]:
    """A recipe of STEPS steps that saves at every other one."""

    def make(rate: float = 1e-2, name: str = "muon", **run: int) -> Recipe:
        return recipe(
            stage={"steps": STEPS, "learn": {"language_model": rate}},
            optimizer={"name": name, "weight_decay": 0.1},
            run={"save_every": SAVE_EVERY, "evaluate_every": 3, **run},
        )

    return make


def train(recipe: Recipe, out: Path, dies_at: int | None = None, width: int = 6) -> Regression:
    learner = Regression(dies_at, width)
    loop.run(learner, recipe, out)
    return learner


def killed(recipe: Recipe, out: Path, at: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(recipe, out, at)


def checkpoints(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").iterdir())


@pytest.mark.parametrize("name", ["muon", "adamw"])
@pytest.mark.parametrize("kills", [[1], [2], [5], [3, 5], [6]])
def test_a_run_with_kills_ends_with_the_weights_of_one_without(
    short: Recipes, tmp_path: Path, name: str, kills: list[int]
) -> None:
    recipe = short(name=name)
    whole = train(recipe, tmp_path / "whole")
    for at in kills:
        killed(recipe, tmp_path / "parts", at)
    resumed = train(recipe, tmp_path / "parts")
    assert same(whole.weights(), resumed.weights())
    assert resumed.steps == list(range(kills[-1] // SAVE_EVERY * SAVE_EVERY, STEPS))
    assert not same(whole.weights(), Regression().weights())


def test_the_log_of_a_resumed_run_holds_each_figure_once(short: Recipes, tmp_path: Path) -> None:
    killed(short(), tmp_path, 5)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "loss": 1.0}\n{"step": 4, "lo')
    train(short(), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    evaluated = [row["step"] for row in rows if "validation" in row]
    assert evaluated == [3, 6, 7]
    assert [row["step"] for row in rows if "loss" in row] == [7]


def test_a_finished_run_does_nothing_more(short: Recipes, tmp_path: Path) -> None:
    done = train(short(), tmp_path)
    again = train(short(), tmp_path)
    assert again.steps == []
    assert same(done.weights(), again.weights())


def test_one_checkpoint_is_kept(short: Recipes, tmp_path: Path) -> None:
    train(short(), tmp_path)
    assert checkpoints(tmp_path) == ["step-0000007"]


def test_parts_that_do_not_learn_are_not_in_a_checkpoint(tmp_path: Path) -> None:
    module = nn.ModuleDict({"moving": nn.Linear(2, 2), "frozen": nn.Linear(2, 2)})
    module["frozen"].requires_grad_(False)
    resume.save(tmp_path, 1, module, [])
    with torch.no_grad():
        for param in module.parameters():
            param.zero_()
    assert resume.load(tmp_path, module, []) == 1
    assert (module["moving"].weight != 0).all() and (module["frozen"].weight == 0).all()


def test_a_changed_rate_counts_from_where_the_run_goes_on(short: Recipes, tmp_path: Path) -> None:
    killed(short(), tmp_path, 5)
    before = Regression()
    optimizers = build_optimizers(
        before.parts(), {"language_model": 0.5}, name="muon", weight_decay=0.0
    )
    assert resume.load(tmp_path / "checkpoints", before.module, optimizers) == 4
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    assert [(group["peak_lr"], group["weight_decay"]) for group in groups] == [(0.5, 0.0)] * 2
    assert all(optimizer.state for optimizer in optimizers)


# What a kill or a full disk leaves


@pytest.fixture
def full_disk() -> Iterator[Callable[[int], None]]:
    """Let no file of this process grow beyond so many bytes."""
    resource = pytest.importorskip("resource")

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("file", ["weights.safetensors", "optimizers.safetensors", "state.json"])
def test_a_full_disk_keeps_the_last_checkpoint(
    short: Recipes,
    tmp_path: Path,
    full_disk: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    file: str,
) -> None:
    whole = train(short(), tmp_path / "whole")
    out = tmp_path / "run"
    killed(short(), out, 3)
    learner = Regression()
    optimizers = build_optimizers(
        learner.parts(), {"language_model": 1e-2}, name="muon", weight_decay=0.1
    )
    resume.load(out / "checkpoints", learner.module, optimizers)
    sizes = [path.stat().st_size for path in (out / "checkpoints").glob("*/*.safetensors")]
    room = {
        "weights.safetensors": 0,
        "optimizers.safetensors": min(sizes),
        "state.json": max(sizes),
    }
    monkeypatch.setattr(json, "dumps", lambda _: " " * (max(sizes) + 1))  # longer than all others
    full_disk(room[file])
    with pytest.raises(CheckpointError) as caught:
        resume.save(out / "checkpoints", 4, learner.module, optimizers)
    full_disk(2**40)
    monkeypatch.undo()
    message = str(caught.value)
    assert message.startswith(f"{out / 'checkpoints/step-0000004'}: cannot be written (")
    assert "File too large" in message
    assert "the earlier checkpoint is kept. Free some space" in message
    assert checkpoints(out) == ["step-0000002"]
    assert same(train(short(), out).weights(), whole.weights())


def test_what_a_kill_left_half_written_is_passed_over(short: Recipes, tmp_path: Path) -> None:
    whole = train(short(), tmp_path / "whole")
    out = tmp_path / "run"
    killed(short(), out, 3)
    shutil.copytree(out / "checkpoints/step-0000002", out / "checkpoints/step-0000004.partial")
    (out / "checkpoints/step-0000004.partial/weights.safetensors").write_bytes(b"half")
    (out / "checkpoints/step-0000001").mkdir()  # half removed
    resumed = train(short(), out)
    assert resumed.steps[0] == 2
    assert same(resumed.weights(), whole.weights())
    assert checkpoints(out) == ["step-0000007"]


@pytest.mark.parametrize("file", ["weights.safetensors", "optimizers.safetensors", "state.json"])
@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\x00" * 64, None])
def test_a_damaged_checkpoint_is_told(
    short: Recipes, tmp_path: Path, file: str, content: bytes | None
) -> None:
    killed(short(), tmp_path, 3)
    path = tmp_path / "checkpoints/step-0000002" / file
    if content is None:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        train(short(), tmp_path)
    assert str(caught.value).startswith(f"{path.parent}: damaged (")
    assert str(caught.value).endswith("; remove it to begin anew")


def test_a_checkpoint_that_lacks_weights_is_told(short: Recipes, tmp_path: Path) -> None:
    killed(short(), tmp_path, 3)
    (tmp_path / "checkpoints/step-0000002/weights.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"step-0000002: damaged \(.*remove it"):
        train(short(), tmp_path)


@pytest.mark.parametrize("change", [{"width": 7}, {"name": "adamw"}])
def test_a_checkpoint_of_another_recipe_is_refused(
    short: Recipes, tmp_path: Path, change: dict[str, int | str]
) -> None:
    killed(short(), tmp_path, 3)
    name, width = str(change.get("name", "muon")), int(change.get("width", 6))
    with pytest.raises(CheckpointError, match="other weights than this recipe trains; use another"):
        train(short(name=name), tmp_path, width=width)
