"""Stages from recipes: what each kind needs is put together here, run, and saved."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn

from lapilli.checkpoints import native
from lapilli.checkpoints.loading import load
from lapilli.config import dump_toml, from_dict
from lapilli.data.augment import Augmentation
from lapilli.data.conversations import Groups
from lapilli.data.records import Records
from lapilli.errors import CheckpointError, ConfigError
from lapilli.model.llava import Llava
from lapilli.model.spec import DecoderSpec, LlavaSpec, VisionSpec
from lapilli.processor.images import ImageSettings
from lapilli.processor.processor import Processor, PromptSettings
from lapilli.processor.tokenizer import load_tokenizer, train_tokenizer
from lapilli.runtime import atomic_write, rename_durably, versions
from lapilli.train import loop, parallel
from lapilli.train.conversation import ConversationLearner
from lapilli.train.recipe import Recipe, SourceRecipe
from lapilli.train.vision import Source, VisionLearner

MEAN = (0.5, 0.5, 0.5)
STD = (0.5, 0.5, 0.5)
WORD_RECORDS = 20000
"""Records of a file that a new tokenizer is learned from."""


def run_stage(recipe: Recipe, data: Path, out: Path) -> None:
    """Train one stage and write its model to `out/model`, beside what made it.

    Args:
        data: the folder that source paths are relative to.
        out: the folder of this stage; those of earlier stages stand beside it.
    """
    rank, _ = parallel.join()
    if rank == 0:
        out.mkdir(parents=True, exist_ok=True)
        (out / "recipe.toml").write_text(dump_toml(recipe))
        (out / "versions.json").write_text(json.dumps(versions(), indent=2) + "\n")
    torch.manual_seed(recipe.run.seed)
    if recipe.stage.kind == "vision":
        _run_vision(recipe, data, out)
    else:
        _run_conversation(recipe, data, out)
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
        tower = learner.module.vision_tower.bfloat16()
        _write_model(out, lambda folder: native.save_tower(folder, tower))


def _run_conversation(recipe: Recipe, data: Path, out: Path) -> None:
    rank, world_size = parallel.join()
    if recipe.model.start is None:
        model, processor = _new_model(recipe, data, out)
    else:
        stage = out.parent / recipe.model.start / "model"
        start = str(stage if stage.is_dir() else recipe.model.start)  # a string may be a hub id
        model, processor = load(start, device="cpu", dtype=torch.float32)
    if recipe.model.vision_tower is not None:
        tower = native.load_tower(out.parent / recipe.model.vision_tower / "model")
        if tower.spec != model.spec.vision:
            raise ConfigError(
                f"model.vision_tower {recipe.model.vision_tower}: {tower.spec} is not the model's "
                f"{model.spec.vision}. Make [model.vision] of the two recipes the same."
            )
        model.vision_tower.load_state_dict(tower.state_dict())
    learner = ConversationLearner(
        recipe,
        model.train(),
        processor,
        [_groups(s, data) for s in recipe.data.sources],
        [_groups(s, data) for s in recipe.data.validation],
        rank=rank,
        world_size=world_size,
    )
    loop.run(learner, recipe, out)
    if rank == 0:
        _write_model(out, lambda folder: native.save(folder, model.bfloat16(), processor))


def _write_model(out: Path, write: Callable[[Path], None]) -> None:
    """Write `out/model`, whole or not at all: its presence says that the stage is done.

    Raises:
        CheckpointError: the disk is full or not writable.
    """
    partial = out / "model.partial"
    for folder in (partial, out / "model"):
        shutil.rmtree(folder, ignore_errors=True)
    try:
        write(partial)
        rename_durably(partial, out / "model")
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(
            f"{out / 'model'}: cannot be written ({reason}); the last checkpoint is kept. "
            "Free some space and run the same command again."
        ) from error


def _new_model(recipe: Recipe, data: Path, out: Path) -> tuple[Llava, Processor]:
    """Return a model with new weights, its tokenizer learned from the stage's own words."""
    rank, _ = parallel.join()
    vision = from_dict(VisionSpec, recipe.model.vision, "model.vision")
    path = out / "tokenizer.json"
    if rank == 0 and not path.exists():
        texts = (text for s in recipe.model.words_from for text in _texts(Records(data / s)))
        tokenizer = train_tokenizer(texts, recipe.model.vocab_size)
        atomic_write(path, tokenizer.to_str(pretty=True).encode())
    parallel.wait_for_all()
    tokenizer = load_tokenizer(path)
    values = {"vocab_size": tokenizer.get_vocab_size(), **recipe.model.decoder}
    decoder = from_dict(DecoderSpec, values, "model.decoder")
    processor = Processor(
        tokenizer,
        ImageSettings(size_px=vision.image_size, mode="squash", mean=MEAN, std=STD),
        PromptSettings(vision.num_features, max_tokens=decoder.max_positions),
        (resources.files("lapilli") / "assets/tiny/chat_template.jinja").read_text(),
    )
    model = Llava(LlavaSpec(vision, decoder, image_token_id=processor.image_token_id))
    initialize(model)
    return model, processor


def _texts(records: Records) -> Iterator[str]:
    """The words of up to WORD_RECORDS records, evenly spread."""
    for index in range(0, len(records), max(1, len(records) // WORD_RECORDS)):
        sample = records[index]
        yield sample.text
        yield from (message.text for message in sample.conversation)


def _groups(source: SourceRecipe, data: Path) -> Groups:
    changes = Augmentation(source.min_area, source.is_mirrored, source.light)
    return Groups(_records(source, data), changes, is_blind=source.is_blind)


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
