"""Learning from answers: packing changes nothing but the speed, and accuracy is what it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from lapilli.data.conversations import Groups, make_batch
from lapilli.data.records import Records
from lapilli.inputs import IGNORE, Inputs
from lapilli.messages import Sample
from lapilli.model.llava import Llava
from lapilli.processor.processor import Processor
from lapilli.tiling import Tiling
from lapilli.train.conversation import ConversationLearner, answer_logits
from lapilli.train.optimizers import build_optimizers
from lapilli.train.recipe import Recipe

Recipes = Callable[..., Recipe]
Rows = Callable[..., Path]


def talk(*values: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": v} for i, v in enumerate(values)]


@pytest.fixture
def records(write_rows: Rows, tmp_path: Path) -> Records:
    """Conversations about two pictures, some of several turns, and about a scene in words."""
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(tmp_path / name)
    scene = "A red star is on the left of a blue circle.\n"
    rows = [
        {"image": "a.png", "conversations": talk("<image>\nWhat is this?", "a star")},
        {
            "image": "a.png",
            "conversations": talk("<image>\nWhat is red?", "a circle", "Left?", "no"),
        },
        {"image": "a.png", "conversations": talk("<image>\nHow many stars?", "2")},
        {"image": "b.png", "conversations": talk("<image>\nWhat is this?", "two circles")},
        {"image": "b.png", "conversations": talk("<image>\nIs it blue?", "yes", "And red?", "no")},
        {"group": "words", "conversations": talk(f"{scene}What is red?", "the star")},
        {"group": "words", "conversations": talk(f"{scene}What is blue?", "the circle")},
        {"text": "It was the best of times, it was the worst of times."},
    ]
    return Records(write_rows(*rows))


def unpacked(sample: Sample, processor: Processor) -> Inputs:
    """A record as it would be without packing."""
    text = processor.encode_text(sample.text) if sample.text else None
    encoded = text or processor.encode(sample.conversation)
    ids = torch.tensor([encoded.ids])
    inputs = Inputs(
        ids,
        torch.arange(ids.shape[1])[None],
        torch.zeros_like(ids),
        labels=torch.tensor([encoded.labels]),
    )
    return processor.with_pictures(
        inputs, ((processor.open(picture), picture.is_cut) for picture in encoded.images)
    )


def learn(model: Llava, inputs: Inputs) -> tuple[Tensor, list[float], dict[str, Tensor]]:
    """Logits at supervised tokens, each token's loss, and the gradients of their sum."""
    model.zero_grad()
    logits, targets = answer_logits(model, inputs)
    losses = F.cross_entropy(logits, targets, reduction="none")
    losses.sum().backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return logits.detach(), losses.tolist(), grads


def by_losses(losses: list[float], logits: Tensor) -> Tensor:
    return logits[torch.tensor(losses).argsort()]


@pytest.mark.parametrize("row_tokens", [400, 120], ids=["one row", "several rows"])
def test_packed_conversations_teach_what_separate_ones_do(
    records: Records, model: Llava, processor: Processor, row_tokens: int
) -> None:
    groups = Groups(records)
    packed = make_batch([(groups, i) for i in range(len(groups))], processor, row_tokens, None)
    assert len(groups) == 4 and packed.pixel_values is not None and len(packed.pixel_values) == 2
    logits, losses, grads = learn(model, packed)

    alone_logits, alone_losses = [], []
    alone_grads = {name: torch.zeros_like(grad) for name, grad in grads.items()}
    for index in range(len(records)):
        one, loss, grad = learn(model, unpacked(records[index], processor))
        alone_logits.append(one)
        alone_losses += loss
        for name in grad:
            alone_grads[name] += grad[name]

    assert len(losses) == len(alone_losses) > 30
    assert sorted(losses) == pytest.approx(sorted(alone_losses), abs=1e-4)
    together, apart = by_losses(losses, logits), by_losses(alone_losses, torch.cat(alone_logits))
    torch.testing.assert_close(together, apart, atol=1e-4, rtol=0)
    unused = {name for name, _ in model.named_parameters()} - grads.keys()
    assert all(name.startswith(("vision_tower.layers.1.", "vision_tower.post")) for name in unused)
    for name, grad in grads.items():
        scale = float(alone_grads[name].abs().max())
        assert scale > 0
        torch.testing.assert_close(grad, alone_grads[name], atol=1e-4 * max(scale, 1), rtol=0)


def test_a_newline_of_cut_pictures_learns_with_the_projector(
    records: Records, model: Llava, processor: Processor, recipe: Recipes
) -> None:
    vision = model.spec.vision
    tiling = Tiling(vision.image_size, vision.grid, ((1, 2), (2, 2)))
    cutting = Llava(replace(model.spec, tiling=tiling))
    cutting.load_state_dict(model.state_dict(), strict=False)
    reader = Processor(
        processor.words.tokenizer,
        replace(processor.images, tiling=tiling),
        processor.prompt,
        processor.chat_template,
    )
    learner = ConversationLearner(recipe(), cutting, reader, [Groups(records)], [])
    build_optimizers(learner.parts(), {"projector": 1e-2}, name="muon", weight_decay=0.0)
    names = {name for name, param in cutting.named_parameters() if param.requires_grad}
    assert names == {"image_newline"} | {n for n in names if n.startswith("projector.")}
    batch = make_batch([(Groups(records), 0)], reader, 400, None)
    loss, _, _ = learner.loss(batch)
    loss.backward()
    grad = cutting.image_newline.grad
    assert grad is not None and float(grad.abs().max()) > 0


def test_a_conversation_counts_as_the_root_of_its_answers_length(
    records: Records, model: Llava, processor: Processor, recipe: Recipes
) -> None:
    groups = Groups(records)
    learner = ConversationLearner(recipe(), model, processor, [groups], [])
    batch = make_batch([(groups, 0), (groups, 2)], processor, 400, None)
    loss, weight, figures = learner.loss(batch)
    alone = [learn(model, unpacked(records[i], processor))[1] for i in (0, 1, 2, 5, 6)]
    lengths = [len(losses) for losses in alone]
    assert len(set(lengths)) > 1
    assert figures == {"supervised_tokens": sum(lengths)}
    roots = np.sqrt(lengths)
    assert weight == pytest.approx(roots.sum(), rel=1e-5)
    expected = sum(np.array([sum(losses) for losses in alone]) / roots) / roots.sum()
    assert loss.item() == pytest.approx(expected, abs=1e-4)


def test_a_batch_without_anything_to_learn_gives_no_gradient(
    records: Records, model: Llava, processor: Processor, recipe: Recipes
) -> None:
    groups = Groups(records)
    learner = ConversationLearner(recipe(), model, processor, [groups], [])
    batch = make_batch([(groups, 0)], processor, 400, None)
    assert batch.labels is not None
    batch.labels.fill_(IGNORE)
    loss, weight, _ = learner.loss(batch)
    loss.backward()
    assert float(loss.detach()) == weight == 0
    assert all(p.grad is None or (p.grad == 0).all() for p in model.parameters())


def test_processes_share_the_groups_of_a_step(
    records: Records, model: Llava, processor: Processor, recipe: Recipes
) -> None:
    groups, made = Groups(records), recipe(stage={"batch": 4, "steps": 3})

    def pixels(rank: int, world_size: int, step: int) -> list[float]:
        learner = ConversationLearner(
            made, model, processor, [groups], [], rank=rank, world_size=world_size
        )
        batch = learner.batch(step)
        return [round(float((batch.input_ids > 0).sum()))]

    for step in range(3):
        shares = pixels(0, 2, step) + pixels(1, 2, step)
        assert [sum(shares)] == pixels(0, 1, step)
        assert min(shares) > 0


# Evaluation


class Reader(nn.Module):
    """Knows every next token, but never gets past one that is among `misread`."""

    def __init__(self, vocab_size: int, misread: set[int]) -> None:
        super().__init__()
        self.vision_tower = self.projector = nn.Identity()
        self.language_model = nn.Module()
        self.language_model.lm_head = nn.Identity()
        self.device = torch.device("cpu")
        self.vocab_size, self.misread = vocab_size, misread

    def hidden(self, input_ids: Tensor, **_: Any) -> Tensor:
        following = input_ids.roll(-1, 1)
        for token in self.misread:
            following = following.masked_fill(following == token, 0)
        return F.one_hot(following, self.vocab_size).float() * 100


QUESTIONS = [
    ("a.png", "existence", ["yes"]),
    ("a.png", "existence", ["no"]),
    ("a.png", "count", ["2"]),
    ("b.png", "existence", ["yes"]),
    ("b.png", "count", ["no"]),
    ("b.png", "follow_up", ["yes", "no"]),
    ("c.png", "count", ["yes"]),
    ("c.png", "", ["no"]),
    ("d.png", "existence", ["no"]),
]


def evaluated(
    model: nn.Module, processor: Processor, recipe: Recipes, path: Path
) -> dict[str, float]:
    made = recipe(data={"validation": [{"path": path.name}]})
    groups = Groups(Records(path))
    return ConversationLearner(made, model, processor, [groups], [groups]).evaluate()


@pytest.fixture
def asked(write_rows: Rows, tmp_path: Path) -> Path:
    rows = []
    for name, kind, answers in QUESTIONS:
        Image.new("RGB", (8, 8)).save(tmp_path / name)
        turns = [turn for i, answer in enumerate(answers) for turn in (f"Question {i}?", answer)]
        turns[0] = f"<image>\n{turns[0]}"
        rows.append({"image": name, "kind": kind, "conversations": talk(*turns)})
    return write_rows(*rows, name="validation-questions.jsonl")


def test_accuracy_is_the_share_of_answers_that_are_right_word_for_word(
    processor: Processor, recipe: Recipes, asked: Path
) -> None:
    (no,) = processor.words.encode("no", with_specials=False)
    reader = Reader(processor.words.tokenizer.get_vocab_size(), {no})
    figures = evaluated(reader, processor, recipe, asked)
    loss = figures.pop("questions/loss")
    assert figures == {
        "questions/existence": 0.5,
        "questions/count": pytest.approx(2 / 3),
        "questions/follow_up": 0.0,
    }
    # A misread word costs 100; the end of each turn is learned as well.
    words = [answer for _, _, answers in QUESTIONS for answer in answers]
    num_learned = sum(len(processor.words.encode(w, with_specials=False)) + 1 for w in words)
    assert loss == pytest.approx(100 * words.count("no") / num_learned, rel=1e-3)


def test_a_model_that_knows_everything_has_no_loss(
    processor: Processor, recipe: Recipes, asked: Path
) -> None:
    reader = Reader(processor.words.tokenizer.get_vocab_size(), set())
    figures = evaluated(reader, processor, recipe, asked)
    assert figures.pop("questions/loss") == pytest.approx(0, abs=1e-6)
    assert set(figures.values()) == {1.0}


def test_the_figures_of_a_model_do_not_depend_on_how_records_are_grouped(
    model: Llava, processor: Processor, recipe: Recipes, asked: Path, write_rows: Rows
) -> None:
    rows = [json.loads(line) for line in asked.read_text().splitlines()]
    alone = [row | {"group": str(index)} for index, row in enumerate(rows)]
    figures = evaluated(model, processor, recipe, asked)
    again = evaluated(model, processor, recipe, write_rows(*alone, name=asked.name))
    assert figures == pytest.approx(again, abs=1e-4)
