"""A small random model with a tokenizer of its own, for all tests of the engine."""

from __future__ import annotations

from importlib.resources import files

import pytest
import torch

from lapilli.engine.engine import Engine
from lapilli.model.llava import Llava
from lapilli.model.spec import DecoderSpec, LlavaSpec, VisionSpec
from lapilli.processor.images import ImageSettings
from lapilli.processor.processor import Processor, PromptSettings
from lapilli.processor.tokenizer import train_tokenizer

CONTEXT = 160


@pytest.fixture(scope="session")
def processor() -> Processor:
    template = files("lapilli").joinpath("assets/tiny/chat_template.jinja").read_text()
    words = ["How many red circles are there?", "What is left of the blue star?"]
    return Processor(
        train_tokenizer(words, 400),
        ImageSettings(32, "pad", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        PromptSettings(features_per_image=16, max_tokens=CONTEXT),
        template,
    )


@pytest.fixture(scope="session")
def model(processor: Processor) -> Llava:
    torch.manual_seed(0)
    vocab_size = processor.words.tokenizer.get_vocab_size()
    made = Llava(
        LlavaSpec(
            VisionSpec(32, 8, 32, 3, 2, 64, "gelu"),
            DecoderSpec(vocab_size, 48, 3, 4, 2, 12, 96, is_tied=True, max_positions=CONTEXT),
            image_token_id=processor.image_token_id,
        )
    ).eval()
    for name, parameter in made.named_parameters():
        if "proj" in name:  # sharp attention: what is looked at must matter to the answer
            torch.nn.init.normal_(parameter, std=0.4)
    return made


@pytest.fixture
def engine(model: Llava, processor: Processor) -> Engine:
    return Engine(model, processor)
