"""Small random models of every kind, and what prepares their inputs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lapilli.checkpoints import hf
from lapilli.messages import Conversation, ImagePart, Message, TextPart
from lapilli.model.llava import Llava
from lapilli.model.spec import DecoderSpec, LlavaSpec, VisionSpec
from lapilli.processor.images import ImageSettings
from lapilli.processor.processor import Processor, PromptSettings
from lapilli.processor.tokenizer import train_tokenizer

sys.path.insert(0, str(Path(__file__).parent))  # tests import what they share

Question = Callable[..., Conversation]

SIDE, PLACES, CONTEXT, VOCAB, IMAGE = 16, 4, 64, 284, 5
CLIP = VisionSpec(SIDE, 8, 32, 3, 2, 48)
SIGLIP = VisionSpec(
    SIDE, 8, 32, 3, 2, 48, "gelu_tanh", 1e-6,
    has_class_token=False, has_pre_norm=False, has_patch_bias=True, feature_layer=-1,
)  # fmt: skip
LLAMA = DecoderSpec(VOCAB, 32, 2, 4, 2, 8, 48, max_positions=CONTEXT)
SPECS = {
    "clip, llama, tied": LlavaSpec(CLIP, replace(LLAMA, is_tied=True), image_token_id=IMAGE),
    "siglip, mistral": LlavaSpec(SIGLIP, replace(LLAMA, sliding_window=6), image_token_id=IMAGE),
    "clip, qwen2": LlavaSpec(CLIP, replace(LLAMA, has_qkv_bias=True), image_token_id=IMAGE),
    "siglip, qwen2 with a window": LlavaSpec(
        SIGLIP, replace(LLAMA, has_qkv_bias=True, sliding_window=6), image_token_id=IMAGE
    ),
    "clip, llama with scaled rope": LlavaSpec(
        replace(CLIP, activation="gelu"),
        replace(LLAMA, rope_theta=5e5, rope_scaling={"rope_type": "linear", "factor": 2.0}),
        image_token_id=IMAGE,
    ),
}


def random_model(spec: LlavaSpec) -> Llava:
    torch.manual_seed(0)
    made = Llava(spec).eval()
    for name, parameter in made.named_parameters():
        # Small embeddings and strong layers: or else each token would be followed by itself.
        scale = 0.05 if "embed_tokens" in name else 0.25
        torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, scale)
    return made


@pytest.fixture(scope="session")
def processor() -> Processor:
    tokenizer = train_tokenizer(["How many red circles are there?"], 300)
    assert tokenizer.get_vocab_size() == VOCAB
    return Processor(
        tokenizer,
        ImageSettings(SIDE, "crop", (0.5, 0.4, 0.3), (0.5, 0.2, 0.1), "bilinear"),
        PromptSettings(PLACES, max_tokens=CONTEXT),
        files("lapilli").joinpath("assets/tiny/chat_template.jinja").read_text("utf-8"),
    )


@pytest.fixture(scope="session")
def specs() -> dict[str, LlavaSpec]:
    """Every kind of model, by name."""
    return SPECS


@pytest.fixture(scope="session")
def make() -> Callable[[LlavaSpec], Llava]:
    """What makes a random model."""
    return random_model


@pytest.fixture(params=SPECS)
def spec(request: pytest.FixtureRequest) -> LlavaSpec:
    return SPECS[request.param]


@pytest.fixture
def model(spec: LlavaSpec) -> Llava:
    return random_model(spec)


@pytest.fixture
def folder(tmp_path: Path, processor: Processor) -> Path:
    """A folder in the layout of Hugging Face, as we write it."""
    hf.save(tmp_path / "model", random_model(SPECS["clip, llama, tied"]), processor)
    return tmp_path / "model"


@pytest.fixture(scope="session")
def question() -> Question:
    """What makes a conversation: words, after as many pictures as are asked for."""

    def ask(text: str = "How many?", num_pictures: int = 1) -> Conversation:
        dice = np.random.default_rng(0)
        pictures = [dice.integers(0, 255, (24, 37, 3), np.uint8) for _ in range(num_pictures)]
        parts = [ImagePart(Image.fromarray(pixels)) for pixels in pictures]
        return (Message("user", (*parts, TextPart(text))),)

    return ask
