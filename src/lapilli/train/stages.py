"""Stages from recipes: what each kind needs is put together here, run, and saved."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from lapilli.checkpoints import native
from lapilli.config import dump_toml, from_dict
from lapilli.data.records import Records

from lapilli.model.spec import VisionSpec
from lapilli.processor.images import ImageSettings
from lapilli.runtime import versions
from lapilli.train import loop, parallel
from lapilli.train.recipe import Recipe, SourceRecipe
from lapilli.train.vision import Source, VisionLearner

MEAN = (0.5, 0.5, 0.5)
STD = (0.5, 0.5, 0.5)


def run_stage(
    recipe: Recipe,
    data: Path,
    out: Path,
    *,
    measure: Callable[[Path], dict[str, float]] | None = None,
) -> None:
    """Train one stage and write its model to `out/model`, beside what made it.

    Args:
        data: the folder that source paths are relative to.
        measure: called with a model folder when the model is evaluated (conversation stages).
    """
    rank, _ = parallel.join()
    if rank == 0:
        out.mkdir(parents=True, exist_ok=True)
        (out / "recipe.toml").write_text(dump_toml(recipe))
        (out / "versions.json").write_text(json.dumps(versions(), indent=2) + "\n")
    torch.manual_seed(recipe.run.seed)
    if recipe.stage.kind == "vision":
        _run_vision(recipe, data, out)
    parallel.wait_for_all()


def _run_vision(recipe: Recipe, data: Path, out: Path) -> None:
    rank, world_size = parallel.join()
    spec = from_dict(VisionSpec, recipe.model.vision, "model.vision")
    settings = ImageSettings(size_px=spec.image_size, mode="squash", mean=MEAN, std=STD)
    learner = VisionLearner(
        recipe,
        spec,
        settings,
        [Source(s, _records(s, data)) for s in recipe.data.sources],
        [Source(s, _records(s, data)) for s in recipe.data.validation],
        rank=rank,
        world_size=world_size,
    )
    initialize(learner.module)
    loop.run(learner, recipe, out)
    if rank == 0:
        native.save_tower(out / "model", learner.module.vision_tower.bfloat16())


def _records(source: SourceRecipe, data: Path) -> Records:
    images = None if source.images is None else data / source.images
    return Records(data / source.path, images)


def initialize(module: nn.Module) -> None:
    """Draw new weights: matrices of unit gain, as Muon's fixed step size likes them."""
    for child in module.modules():
        if isinstance(child, nn.Linear | nn.Conv2d):
            fan_in = child.weight[0].numel()
            nn.init.normal_(child.weight, std=1 / math.sqrt(fan_in))
            if child.bias is not None:
                nn.init.zeros_(child.bias)
        elif isinstance(child, nn.Embedding):
            nn.init.normal_(child.weight, std=1 / math.sqrt(child.embedding_dim))
    for name, param in module.named_parameters():
        if name.endswith("class_embedding"):
            nn.init.normal_(param, std=1 / math.sqrt(param.numel()))
        elif "_head." in name and "lm_head" not in name:
            nn.init.zeros_(param)
