"""A small LLaVA, a few drawn pictures, and recipes for both."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch

from lapilli.app.drawing import DrawnData, make_drawn
from lapilli.config import from_dict
from lapilli.data.records import Records
from lapilli.model.llava import Llava
from lapilli.model.spec import DecoderSpec, LlavaSpec, VisionSpec
from lapilli.processor.images import ImageSettings
from lapilli.processor.processor import Processor, PromptSettings
from lapilli.processor.tokenizer import train_tokenizer
from lapilli.train.recipe import Recipe
from lapilli.train.stages import initialize

VISION = {
    "image_size": 32, "patch_size": 8, "width": 32, "num_layers": 2, "num_heads": 2,
    "mlp_width": 64, "activation": "gelu",
}  # fmt: skip
DECODER = {
    "width": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2, "head_dim": 16,
    "mlp_width": 64, "is_tied": True, "max_positions": 512,
}  # fmt: skip


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of 20 pictures."""
    folder = tmp_path_factory.mktemp("drawn") / "data"
    make_drawn(DrawnData(pictures=20, texts=20, size_px=32), folder)
    return folder


@pytest.fixture(scope="session")
def processor(drawn: Path) -> Processor:
    words = (m.text for sample in Records(drawn / "text.jsonl") for m in sample.conversation)
    return Processor(
        train_tokenizer(itertools.islice(words, 100), 500),
        ImageSettings(32, "squash", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        PromptSettings(features_per_image=16, max_tokens=512),
        files("lapilli").joinpath("assets/tiny/chat_template.jinja").read_text(),
    )


@pytest.fixture
def model(processor: Processor) -> Llava:
    torch.manual_seed(0)
    vocab_size = processor.words.tokenizer.get_vocab_size()
    made = Llava(
        LlavaSpec(
            from_dict(VisionSpec, VISION, "vision"),
            from_dict(DecoderSpec, {**DECODER, "vocab_size": vocab_size}, "decoder"),
            image_token_id=processor.image_token_id,
        )
    )
    initialize(made)
    return made


@pytest.fixture(scope="session")
def recipe() -> Callable[..., Recipe]:
    """Make a recipe: tables on top of a short conversation stage in fp32."""

    def make(**tables: dict[str, Any]) -> Recipe:
        base: dict[str, dict[str, Any]] = {
            "model": {"vision": VISION, "decoder": DECODER},
            "data": {"sources": [{"path": "scenes-questions.jsonl"}], "row_tokens": 256},
            "stage": {
                "kind": "conversation", "steps": 4, "batch": 2, "learn": {"language_model": 1e-2},
            },
            "optimizer": {"name": "muon"},
            "run": {"dtype": "fp32"},
        }  # fmt: skip
        return from_dict(Recipe, {k: v | tables.get(k, {}) for k, v in base.items()}, "test")

    return make


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    """Write records into a file of `tmp_path`."""

    def write(*rows: dict[str, Any], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write
