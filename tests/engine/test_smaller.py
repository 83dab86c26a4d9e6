"""An engine with smaller weights, or a smaller cache: its answers are the model's own."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from PIL import Image

from lapilli.engine.engine import Engine, EngineSettings
from lapilli.errors import ConfigError
from lapilli.messages import Conversation, ImagePart, Message, Sampling, TextPart
from lapilli.model.llava import Llava
from lapilli.model.quantize import quantize
from lapilli.model.small_cache import KEPT, Kept
from lapilli.model.spec import DecoderSpec, LlavaSpec, VisionSpec
from lapilli.processor.processor import Processor

CONTEXT, NUM_NEW = 160, 12


@pytest.fixture(scope="module")
def whole(processor: Processor) -> Llava:
    """Wide enough for groups of 32 inputs."""
    torch.manual_seed(0)
    vocab_size = processor.words.tokenizer.get_vocab_size()
    made = Llava(
        LlavaSpec(
            VisionSpec(32, 8, 32, 3, 2, 64, "gelu"),
            DecoderSpec(vocab_size, 64, 3, 4, 2, 16, 96, max_positions=CONTEXT),
            image_token_id=processor.image_token_id,
        )
    ).eval()
    for name, parameter in made.named_parameters():
        if "proj" in name:
            torch.nn.init.normal_(parameter, std=0.4)
    return made


@pytest.fixture(scope="module", params=["int8", "int4"])
def smaller(request: pytest.FixtureRequest, whole: Llava) -> Llava:
    made = deepcopy(whole)
    quantize(made.language_model, request.param, torch.device("cpu"))
    return made


def ask(text: str, *colors: str) -> Conversation:
    pictures = [ImagePart(Image.new("RGB", (40, 24), color)) for color in colors]
    return (Message("user", (*pictures, TextPart(text))),)


ASKED = [
    ask("What is left of the blue star?"),
    ask("How many red circles?", "red"),
    ask("How many red circles?", "blue"),
    ask("Are there stars?", "green", "red"),
]


def answers(engine: Engine, conversations: list[Conversation]) -> list[str]:
    texts = [""] * len(conversations)
    for piece in engine.respond(conversations, Sampling(NUM_NEW)):
        texts[piece.index] += piece.text
    return texts


@torch.inference_mode()
def plain_greedy(model: Llava, processor: Processor, conversation: Conversation) -> str:
    """Greedy decoding without a cache."""
    inputs = processor.batch([conversation])
    ids, made = inputs.input_ids, list[int]()
    while len(made) < NUM_NEW and processor.end_id not in made:
        positions = torch.arange(ids.shape[1])[None]
        logits = model(ids, positions, torch.zeros_like(ids), pixel_values=inputs.pixel_values)
        made.append(int(logits[0, -1].argmax()))
        ids = torch.cat([ids, torch.tensor([[made[-1]]])], 1)
    return processor.decode(made).rstrip("\ufffd")


def test_answers_of_smaller_weights_are_their_greedy_tokens(
    smaller: Llava, processor: Processor
) -> None:
    engine = Engine(smaller, processor)
    for conversation in ASKED:
        assert answers(engine, [conversation]) == [plain_greedy(smaller, processor, conversation)]


@pytest.mark.parametrize("kept", [None, *KEPT])
def test_a_batch_of_smaller_weights_answers_as_each_alone(
    smaller: Llava, processor: Processor, kept: Kept | None
) -> None:
    engine = Engine(smaller, processor, settings=EngineSettings(cache_dtype=kept))
    alone = [answers(engine, [conversation])[0] for conversation in ASKED]
    assert len(set(alone)) > 1
    assert answers(engine, ASKED) == alone
    engine.forget()
    assert answers(engine, ASKED) == alone


@pytest.mark.parametrize(("kept", "share"), [("bf16", 0.5), ("int8", 0.32)])
def test_a_smaller_cache_answers_the_same_from_fewer_bytes(
    whole: Llava, processor: Processor, kept: Kept, share: float
) -> None:
    plain = Engine(whole, processor)
    small = Engine(whole, processor, settings=EngineSettings(cache_dtype=kept))
    before, after = answers(plain, ASKED), answers(small, ASKED)
    # A rounded number may turn one choice, and all that follows it.
    assert sum(a[:4] == b[:4] for a, b in zip(before, after, strict=True)) >= 3
    assert small.state().cache_bytes <= share * plain.state().cache_bytes


@pytest.mark.parametrize("kept", KEPT)
def test_a_bound_on_memory_holds_more_tokens_of_a_smaller_cache(
    whole: Llava, processor: Processor, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lapilli.engine.engine._CPU_CACHE_BYTES", 2**19)
    plain = Engine(whole, processor).state()
    small = Engine(whole, processor, settings=EngineSettings(cache_dtype=kept)).state()
    assert small.cache_tokens > 1.9 * plain.cache_tokens
    assert small.cache_bytes < 1.1 * 2**19


def test_an_unknown_type_of_the_cache_is_refused() -> None:
    with pytest.raises(ConfigError, match="cache_dtype is 'int4'; give bf16 or int8, or None"):
        EngineSettings(cache_dtype="int4")  # type: ignore[arg-type]
