"""The training loop: the same for every stage.

A stage is a `Learner`; the loop takes its batches, steps its optimizers, measures, saves and goes
on from where a killed run stopped. What a step sees depends on the seed and its number alone.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor, nn
from torch.optim import Optimizer

from lapilli.train import parallel, resume
from lapilli.train.optimizers import build_optimizers
from lapilli.train.recipe import Recipe, StageRecipe


class Learner(Protocol):
    """What a stage brings to the loop."""

    @property
    def module(self) -> nn.Module:
        """Everything that may learn."""
        ...

    def parts(self) -> dict[str, nn.Module]:
        """Modules by the names that recipes use in `learn`."""
        ...

    def batch(self, step: int) -> Any:
        """Return this process's share of a step; the same whenever it is asked for."""
        ...

    def loss(self, batch: Any) -> tuple[Tensor, float, dict[str, float]]:
        """Return the mean loss of a batch, how much the batch counts against those of other
        processes (pictures, or the weights of its tokens), and figures to log."""
        ...

    def evaluate(self) -> dict[str, float]:
        """Return figures on validation data."""
        ...


def rate_share(stage: StageRecipe, step: int) -> float:
    """Return the share of the peak learning rate at a step."""
    warmup = max(1, round(stage.warmup * stage.steps))
    if step < warmup:
        return (step + 1) / warmup
    if stage.decay == "constant":
        return 1.0
    done = (step - warmup) / max(1, stage.steps - warmup)
    return stage.final_rate + (1 - stage.final_rate) * 0.5 * (1 + math.cos(math.pi * done))


def run(
    learner: Learner,
    recipe: Recipe,
    out: Path,
) -> None:
    """Train; leave checkpoints and `metrics.jsonl` in `out`."""
    rank, world_size = parallel.join()
    torch.manual_seed(recipe.run.seed)
    optimizers = build_optimizers(
        learner.parts(),
        recipe.stage.learn,
        name=recipe.optimizer.name,
        weight_decay=recipe.optimizer.weight_decay,
    )
    checkpoints = out / "checkpoints"
    first = resume.load(checkpoints, learner.module, optimizers)
    log = _Log(out / "metrics.jsonl", first) if rank == 0 else None
    stage = recipe.stage
    with _ProgressBar(out.name, stage, first, is_shown=rank == 0) as bar:
        started, seen = time.monotonic(), 0
        for step, batch in _batches(learner, first, stage.steps):
            figures = _step(learner, batch, optimizers, recipe, step, world_size)
            seen += stage.batch
            done = step + 1
            speed = seen / (time.monotonic() - started)
            bar.advance(figures["loss"], speed)
            if log and (done % 20 == 0 or done == stage.steps):
                log.write({"step": done, **figures, "examples_per_s": speed})
            if done % recipe.run.save_every == 0 or done == stage.steps:
                if rank == 0:
                    resume.save(checkpoints, done, learner.module, optimizers)
                parallel.wait_for_all()
            if done % recipe.run.evaluate_every == 0 or done == stage.steps:
                paused = time.monotonic()
                if log:
                    log.write({"step": done, **evaluate(learner)})
                parallel.wait_for_all()
                started += time.monotonic() - paused


def evaluate(learner: Learner) -> dict[str, float]:
    """Return the learner's validation figures."""
    learner.module.eval()
    with torch.no_grad():
        figures = learner.evaluate()
    learner.module.train()
    return figures


def _step(
    learner: Learner,
    batch: Any,
    optimizers: list[Optimizer],
    recipe: Recipe,
    step: int,
    world_size: int,
) -> dict[str, float]:
    share = rate_share(recipe.stage, step)
    loss, weight, figures = learner.loss(batch)
    scale = weight * world_size / max(parallel.total(weight), 1.0)
    (loss * scale).backward()
    params = [
        p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]
    ]
    parallel.average_gradients(params)
    norm = nn.utils.clip_grad_norm_(params, recipe.optimizer.max_grad_norm)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * share
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return {"loss": loss.item(), "grad_norm": norm.item(), "rate_share": share, **figures}


def _batches(learner: Learner, first: int, steps: int) -> Iterator[tuple[int, Any]]:
    """Yield batches, each made while the step before it runs."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(learner.batch, first) if first < steps else None
        for step in range(first, steps):
            assert coming is not None
            batch = coming.result()
            if step + 1 < steps:
                coming = pool.submit(learner.batch, step + 1)
            yield step, batch


class _Log:
    """Figures as JSON lines; those past the checkpoint of a resumed run are dropped, and so is a
    line that the run was killed in."""

    def __init__(self, path: Path, first: int) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= first]
        path.write_text("".join(f"{line}\n" for line in kept))

    def write(self, figures: dict[str, float]) -> None:
        row = {k: round(v, 6) if isinstance(v, float) else v for k, v in figures.items()}
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


class _ProgressBar:
    """On stderr, with examples/s and time left."""

    def __init__(self, name: str, stage: StageRecipe, first: int, *, is_shown: bool) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.3f}  {task.fields[speed]:.0f} examples/s"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not is_shown,
        )
        self._task = self._bar.add_task(
            name, total=stage.steps, completed=first, loss=math.nan, speed=0.0
        )

    def __enter__(self) -> _ProgressBar:
        self._bar.start()
        return self

    def advance(self, loss: float, speed: float) -> None:
        """Show that a step is done, its loss, and the examples/s so far."""
        self._bar.update(self._task, advance=1, loss=loss, speed=speed)

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
