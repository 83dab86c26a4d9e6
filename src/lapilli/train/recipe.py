"""What a recipe file says; see `recipes/` for examples with reasons."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lapilli.config import from_dict
from lapilli.errors import ConfigError
from lapilli.model.spec import DecoderSpec, VisionSpec


@dataclass(frozen=True)
class SourceRecipe:
    """Records to learn from.

    Attributes:
        path: LLaVA JSON or JSONL; relative to the run's data folder.
        images: the folder of its pictures; the file's own by default.
        weight: share of the run; shares need not sum to 1.
        min_area, is_mirrored, light: how pictures are changed (`lapilli.data.augment`).
        is_complete: `objects` lists everything in the picture.
        is_blind: pictures are left out, to learn what the questions alone give away.
    """

    path: Path
    images: Path | None = None
    weight: float = 1.0
    min_area: float = 1.0
    is_mirrored: bool = False
    light: float = 0.0
    is_complete: bool = True
    is_blind: bool = False

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ConfigError(
                f"weight is {self.weight}; give more than 0, or leave {self.path} out"
            )


@dataclass(frozen=True)
class ModelRecipe:
    """Where the model starts from.

    Attributes:
        start: an earlier stage of this run, or a model as `--model` takes it. None for a new one.
        vision: values of `lapilli.model.spec.VisionSpec`, for a new tower.
        decoder: values of `lapilli.model.spec.DecoderSpec`, for a new decoder.
        vision_tower: folder of an earlier stage whose tower is taken over.
        vocab_size: tokens of a new tokenizer.
        words_from: files of records that a new tokenizer is learned from.
    """

    start: Path | None = None
    vision_tower: Path | None = None
    vision: dict[str, int | float | str | bool] = field(default_factory=dict)
    decoder: dict[str, int | float | str | bool] = field(default_factory=dict)
    vocab_size: int = 4096
    words_from: tuple[Path, ...] = ()


@dataclass(frozen=True)
class DataRecipe:
    """What is learned from, and what is only measured on.

    Attributes:
        row_tokens: length of a packed row (conversations).
    """

    sources: tuple[SourceRecipe, ...] = ()
    validation: tuple[SourceRecipe, ...] = ()
    row_tokens: int = 224


@dataclass(frozen=True)
class StageRecipe:
    """What is done.

    Attributes:
        kind: "vision" learns a tower from objects in pictures; "conversation" learns the parts
            named in `learn` from answers.
        learn: peak learning rate of each part: vision_tower, projector, language_model.
        batch: pictures (vision) or groups of conversations about one picture (conversation) of one
            step, over all processes.
        warmup: share of the steps in which the rate rises.
        decay: "cosine" to `final_rate` of the peak, or "constant".
    """

    kind: Literal["vision", "conversation"]
    steps: int
    batch: int
    learn: dict[str, float]
    warmup: float = 0.03
    decay: Literal["cosine", "constant"] = "cosine"
    final_rate: float = 0.02


@dataclass(frozen=True)
class OptimizerRecipe:
    """How steps are taken."""

    name: Literal["muon", "adamw"] = "adamw"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0


@dataclass(frozen=True)
class RunRecipe:
    """How the run is kept.

    Attributes:
        processes: workers on this machine; each gets its share of a batch.
        evaluate_every, save_every: in steps.
    """

    seed: int = 1
    processes: int = 1
    dtype: Literal["bf16", "fp32"] = "bf16"
    evaluate_every: int = 500
    save_every: int = 500


@dataclass(frozen=True)
class Recipe:
    """One stage of training."""

    stage: StageRecipe
    model: ModelRecipe = field(default_factory=ModelRecipe)
    data: DataRecipe = field(default_factory=DataRecipe)
    optimizer: OptimizerRecipe = field(default_factory=OptimizerRecipe)
    run: RunRecipe = field(default_factory=RunRecipe)

    def __post_init__(self) -> None:
        if not self.data.sources:
            raise ConfigError("data.sources is empty; name records to learn from")
        if not self.stage.learn:
            raise ConfigError("stage.learn is empty; give a part that learns and its rate")
        for key, count in {
            "stage.steps": self.stage.steps,
            "run.processes": self.run.processes,
            "run.evaluate_every": self.run.evaluate_every,
            "run.save_every": self.run.save_every,
        }.items():
            if count < 1:
                raise ConfigError(f"{key} is {count}; give 1 or more")
        if self.stage.batch < self.run.processes:
            raise ConfigError(
                f"stage.batch {self.stage.batch} is below run.processes {self.run.processes}; "
                "every process needs something to do"
            )
        # A misspelt key would otherwise come to light when the stages before have run.
        from_dict(VisionSpec, self.model.vision, "model.vision")
        from_dict(DecoderSpec, self.model.decoder, "model.decoder")
