from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import pytest
import torch
from PIL import Image

from lapilli.engine.engine import Engine
from lapilli.errors import (
    ConfigError,
    EngineError,
    ImageError,
    LapilliError,
    PromptError,
    TooLongError,
)
from lapilli.inputs import Inputs
from lapilli.messages import Conversation, ImagePart, Message, Piece, Request, Sampling, TextPart
from lapilli.model.llava import Llava
from lapilli.processor.processor import Processor

NUM_NEW = 24


def picture(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def ask(text: str, *pictures: Image.Image) -> Conversation:
    return (Message("user", (*map(ImagePart, pictures), TextPart(text))),)


MIXED = [
    ask("What is left of the blue star?"),
    ask("How many red circles?", picture(1)),
    ask("How many red circles?", picture(2)),
    ask("Are there stars in both of these pictures, and are they blue?", picture(1), picture(2)),
    (
        *ask("What is this?", picture(3)),
        Message("assistant", (TextPart("A circle."),)),
        *ask("And left of it?"),
    ),
    ask("Star?", picture(4)),
]


def answers(pieces: Iterable[Piece], count: int) -> list[str]:
    texts = [""] * count
    for piece in pieces:
        texts[piece.index] += piece.text
    return texts


def one_by_one(
    engine: Engine, conversations: Sequence[Conversation], sampling: Sampling
) -> list[str]:
    return [answers(engine.respond([c], sampling), 1)[0] for c in conversations]


@torch.inference_mode()
def plain_greedy(model: Llava, processor: Processor, conversation: Conversation) -> list[int]:
    """Greedy tokens without a cache: the whole text is read anew for each."""
    inputs = processor.batch([conversation])
    ids, made = inputs.input_ids, list[int]()
    while len(made) < NUM_NEW and processor.end_id not in made:
        positions = torch.arange(ids.shape[1])[None]
        logits = model(ids, positions, torch.zeros_like(ids), pixel_values=inputs.pixel_values)
        made.append(int(logits[0, -1].argmax()))
        ids = torch.cat([ids, torch.tensor([[made[-1]]])], 1)
    return made


@pytest.mark.parametrize("conversation", MIXED)
def test_answer_equals_greedy_decoding_without_a_cache(
    engine: Engine, model: Llava, processor: Processor, conversation: Conversation
) -> None:
    expected = plain_greedy(model, processor, conversation)
    pieces = list(engine.respond([conversation], Sampling(NUM_NEW)))
    told = "".join(piece.text for piece in pieces)
    assert told == processor.decode(expected).rstrip("\ufffd")
    assert sum(piece.num_tokens for piece in pieces) == len(expected)


@pytest.mark.parametrize("max_batch", [2, 16])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_batched_answers_equal_single_ones(
    model: Llava, processor: Processor, max_batch: int, temperature: float
) -> None:
    sampling = Sampling(NUM_NEW, temperature, top_p=0.95, seed=7)
    engine = Engine(model, processor, max_batch=max_batch)
    batched = answers(engine.respond(MIXED, sampling), len(MIXED))
    assert batched == one_by_one(engine, MIXED, sampling)
    assert len(set(batched)) == len(MIXED)


def test_pictures_are_opened_when_their_turn_comes(
    model: Llava, processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[object] = []
    open_one = processor.open
    monkeypatch.setattr(processor, "open", lambda p: (opened.append(p), open_one(p))[1])
    engine = Engine(model, processor, max_batch=2)
    pieces = engine.respond([ask("Star?", picture(seed)) for seed in range(6)], Sampling(2))
    assert not opened
    finished = [len(opened) for piece in pieces if piece.finish_reason is not None]
    assert finished == [2, 2, 4, 4, 6, 6]


def test_rows_that_finish_early_leave_the_others_alone(
    engine: Engine, processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling = Sampling(NUM_NEW, temperature=1.5)
    # The commonest early token ends an answer, so that answers of all lengths come about.
    texts = one_by_one(engine, MIXED, sampling)
    first = processor.words.encode(texts[1], with_specials=False)[3]
    monkeypatch.setattr(processor, "end_id", first)
    pieces = list(engine.respond(MIXED, sampling))
    assert {piece.finish_reason for piece in pieces} == {None, "stop", "length"}
    assert answers(pieces, len(MIXED)) == one_by_one(engine, MIXED, sampling)


def test_the_seed_decides_what_is_drawn(engine: Engine) -> None:
    draw = [
        answers(engine.respond(MIXED[:1], Sampling(NUM_NEW, 1.0, seed=seed)), 1)[0]
        for seed in (1, 1, 2)
    ]
    assert draw[0] == draw[1] != draw[2]


def test_every_answer_finishes_once_and_counts_its_tokens(engine: Engine) -> None:
    pieces = list(engine.respond(MIXED, Sampling(5)))
    finished = [piece for piece in pieces if piece.finish_reason is not None]
    assert sorted(piece.index for piece in finished) == list(range(len(MIXED)))
    assert {piece.finish_reason for piece in finished} == {"length"}
    assert sum(piece.num_tokens for piece in pieces) == 5 * len(MIXED)


def test_end_of_turn_stops_and_is_not_told(
    engine: Engine, processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    *_, last = engine.respond(MIXED[:1], Sampling(1))
    token = plain_greedy(engine.model, processor, MIXED[0])[0]
    assert last.finish_reason == "length"
    monkeypatch.setattr(processor, "end_id", token)
    (piece,) = engine.respond(MIXED[:1], Sampling(9))
    assert (piece.text, piece.finish_reason, piece.num_tokens) == ("", "stop", 1)


def test_answer_ends_where_the_context_does(engine: Engine, processor: Processor) -> None:
    num_prompt = len(processor.encode(MIXED[3], is_answering=True).ids)
    pieces = list(engine.respond(MIXED[3:4], Sampling(1000)))
    assert pieces[-1].finish_reason == "length"
    assert sum(piece.num_tokens for piece in pieces) == engine.context - num_prompt


def test_no_conversations_give_no_pieces(engine: Engine) -> None:
    assert list(engine.respond([])) == []


def test_caller_keeps_its_gradients_while_pieces_come(engine: Engine) -> None:
    for _ in engine.respond(MIXED[:1], Sampling(2)):
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (Sampling(0), "max_new_tokens is 0"),
        (Sampling(temperature=math.nan), "temperature is nan"),
        (Sampling(temperature=-0.1), "temperature is -0.1"),
        (Sampling(top_p=0), "top_p is 0"),
    ],
)
def test_senseless_settings_are_refused_by_the_call_itself(
    engine: Engine, sampling: Sampling, message: str
) -> None:
    with pytest.raises(EngineError, match=message):
        engine.respond(MIXED, sampling)


@pytest.mark.parametrize(
    ("conversation", "error", "message"),
    [
        ((), PromptError, "the list is empty"),
        (ask(" "), PromptError, "the user says nothing"),
        (ask("a b " * 200), PromptError, "the model holds 160"),
    ],
)
def test_a_bad_conversation_is_refused_before_any_work(
    engine: Engine, conversation: Conversation, error: type[LapilliError], message: str
) -> None:
    with pytest.raises(error, match=message):
        engine.respond([*MIXED, conversation])


def test_prompt_that_fills_the_context_is_refused(engine: Engine, processor: Processor) -> None:
    engine.context = len(processor.encode(MIXED[1], is_answering=True).ids)
    message = f"conversation 2: its {engine.context} tokens leave no room for an answer"
    with pytest.raises(TooLongError, match=message):
        engine.respond([MIXED[0], MIXED[1]])


def test_bad_picture_is_said(engine: Engine) -> None:
    with pytest.raises(ImageError, match=r"nowhere\.png"):
        list(engine.respond([(Message("user", (ImagePart("nowhere.png"), TextPart("?"))),)]))


def test_engine_takes_a_batch_of_one_or_more(model: Llava, processor: Processor) -> None:
    with pytest.raises(ConfigError, match="max_batch is 0"):
        Engine(model, processor, max_batch=0)


@torch.inference_mode()
def test_running_text_is_continued_as_it_is(
    engine: Engine, model: Llava, processor: Processor
) -> None:
    text = "How many <image> stars<|end|>"
    ids = processor.words.encode(text, with_specials=False)
    told = "".join(piece.text for piece in engine.submit(Request((), Sampling(8), text=text)))
    made: list[int] = []
    while len(made) < 8:
        row = torch.tensor([ids + made])
        places = torch.arange(row.shape[1])[None]
        inputs = Inputs(row, places, torch.zeros_like(row))
        made.append(int(model(**inputs)[0, -1].argmax()))
        if made[-1] == processor.end_id:
            break
    assert told == processor.decode(made).rstrip("\ufffd")


def test_running_text_beyond_the_context_is_refused(engine: Engine) -> None:
    with pytest.raises(TooLongError, match="the text takes"):
        engine.submit(Request((), text="star " * 1000))
