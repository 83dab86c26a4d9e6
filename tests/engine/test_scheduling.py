"""Many at once: what is used again, who waits, who fails alone, and that nothing is lost."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from PIL import Image

from lapilli.engine.engine import Engine
from lapilli.engine.runner import Chunk
from lapilli.engine.settings import EngineSettings
from lapilli.engine.stream import Stream
from lapilli.errors import BusyError, ConfigError, EngineError, ImageError, TooLongError
from lapilli.messages import Conversation, ImagePart, Message, Piece, Request, Sampling, TextPart
from lapilli.model.llava import Llava
from lapilli.model.visual_tokens import choose_tokens
from lapilli.processor.processor import Processor

NUM_NEW = 12


def picture(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def ask(text: str, *pictures: Image.Image) -> Conversation:
    return (Message("user", (*map(ImagePart, pictures), TextPart(text))),)


def request(text: str, *pictures: Image.Image, count: int = NUM_NEW) -> Request:
    return Request(ask(text, *pictures), Sampling(count))


def text_of(stream: Stream) -> str:
    return "".join(piece.text for piece in stream)


def make(model: Llava, processor: Processor, **settings: int | bool) -> Engine:
    return Engine(model, processor, settings=EngineSettings(**settings))  # type: ignore[arg-type]


def fresh(model: Llava, processor: Processor, conversation: Conversation) -> str:
    """The answer of an engine that has seen nothing."""
    engine = make(model, processor, reuses=False, picture_bytes=0)
    return text_of(engine.submit(Request(conversation, Sampling(NUM_NEW))))


# What is used again


def test_second_question_about_a_picture_reads_only_what_is_new(
    engine: Engine, model: Llava, processor: Processor
) -> None:
    first, second = ask("What is this?", picture(1)), ask("How many stars?", picture(1))
    text_of(engine.submit(Request(first, Sampling(NUM_NEW))))
    before = engine.state()
    answer = text_of(engine.submit(Request(second, Sampling(NUM_NEW))))
    after = engine.state()
    assert after.counts.reused_tokens - before.counts.reused_tokens == 16  # a block of the picture
    assert after.pictures == before.pictures == 1
    assert answer == fresh(model, processor, second)


def test_a_picture_at_another_place_is_read_but_not_encoded_again(
    engine: Engine, model: Llava, processor: Processor
) -> None:
    text_of(engine.submit(request("What is this?", picture(1))))
    both = ask("Which has stars?", picture(2), picture(1))
    answer = text_of(engine.submit(Request(both, Sampling(NUM_NEW))))
    assert engine.state().pictures == 2
    assert engine.state().counts.reused_tokens == 0
    assert answer == fresh(model, processor, both)


def test_each_turn_of_a_chat_reads_only_its_own_words(
    engine: Engine, model: Llava, processor: Processor
) -> None:
    turns: list[Message] = list(ask("What is this?", picture(1)))
    for question in ("How many stars?", "And left of it?", "Is it red?"):
        *_, last = pieces = list(engine.submit(Request(tuple(turns), Sampling(NUM_NEW))))
        answer = "".join(piece.text for piece in pieces)
        assert answer == fresh(model, processor, tuple(turns))
        turns += [Message("assistant", (TextPart(answer),)), *ask(question)]
    assert last.usage is not None
    assert last.usage.prompt - last.usage.reused < 48  # of the last turn, and of a block before it


def test_another_picture_never_gets_the_first_ones_answer(
    engine: Engine, model: Llava, processor: Processor
) -> None:
    tall = picture(1).transpose(Image.Transpose.ROTATE_90)
    same_bytes = Image.frombytes("RGB", (24, 40), picture(1).tobytes())
    shown = [picture(1), tall, same_bytes, picture(2)]
    answers = [text_of(engine.submit(request("What?", one))) for one in shown]
    assert answers == [fresh(model, processor, ask("What?", one)) for one in shown]
    assert engine.state().counts.reused_tokens == 0
    assert len(set(answers)) == 4


def test_equal_questions_at_the_same_time_are_read_once(engine: Engine) -> None:
    streams = [engine.submit(request("What is this?", picture(1))) for _ in range(4)]
    answers = [text_of(stream) for stream in streams]
    assert len(set(answers)) == 1
    state = engine.state()
    assert state.pictures == 1
    prompt = state.counts.prompt_tokens // 4
    assert state.counts.reused_tokens == 3 * ((prompt - 1) // 16 * 16)


def test_several_answers_share_their_prompt_and_differ_by_their_seed(
    engine: Engine, model: Llava, processor: Processor
) -> None:
    sampling = Sampling(NUM_NEW, temperature=1.0, seed=3)
    texts = [""] * 3
    for piece in engine.submit(Request(ask("What is this?", picture(1)), sampling, 3)):
        texts[piece.index] += piece.text
    alone = [
        text_of(
            make(model, processor).submit(
                Request(ask("What is this?", picture(1)), Sampling(NUM_NEW, 1.0, seed=3 + index))
            )
        )
        for index in range(3)
    ]
    assert texts == alone
    assert len(set(texts)) == 3
    assert engine.state().pictures == 1


def test_caches_can_be_switched_off(model: Llava, processor: Processor) -> None:
    engine = make(model, processor, reuses=False, picture_bytes=0)
    answers = [text_of(engine.submit(request("What is this?", picture(1)))) for _ in range(2)]
    assert answers[0] == answers[1]
    state = engine.state()
    assert (state.pictures, state.counts.reused_tokens, state.kept_pictures) == (2, 0, 0)


def test_what_is_forgotten_is_read_again(engine: Engine) -> None:
    text_of(engine.submit(request("What is this?", picture(1))))
    engine.forget()
    text_of(engine.submit(request("What is this?", picture(1))))
    assert engine.state().pictures == 2
    assert engine.state().counts.reused_tokens == 0


def test_a_small_cache_gives_the_answers_of_a_large_one(model: Llava, processor: Processor) -> None:
    small = make(model, processor, cache_tokens=96)
    questions = [ask("What is this?", picture(seed % 3)) for seed in range(7)]
    streams = [small.submit(Request(question, Sampling(NUM_NEW))) for question in questions]
    answers = [text_of(stream) for stream in streams]
    assert answers == [fresh(model, processor, question) for question in questions]
    assert small.state().held_tokens == 0


# Who is served when


def test_prompts_read_in_chunks_give_the_same_answers(model: Llava, processor: Processor) -> None:
    engine = make(model, processor, chunk_tokens=7)
    questions = [ask("What is left of it?", picture(1), picture(2)), ask("Star?", picture(3))]
    streams = [engine.submit(Request(question, Sampling(NUM_NEW))) for question in questions]
    answers = [text_of(stream) for stream in streams]
    assert answers == [fresh(model, processor, question) for question in questions]


def test_a_long_prompt_does_not_stall_the_others(model: Llava, processor: Processor) -> None:
    engine = make(model, processor, chunk_tokens=4)
    short = engine.submit(request("Star?", count=30))
    next(short)
    long = engine.submit(request("Are there stars in both?", picture(1), picture(2)))
    for _ in range(4):
        assert next(short).num_tokens >= 1
    assert engine.state().running == 2
    assert not long._told
    assert text_of(long) == fresh(
        model, processor, ask("Are there stars in both?", picture(1), picture(2))
    )


def test_requests_are_begun_in_their_order(model: Llava, processor: Processor) -> None:
    engine = make(model, processor, max_batch=2)
    order: list[int] = []
    streams = [engine.submit(request("Star?", picture(seed), count=4)) for seed in range(6)]
    while engine.step():
        for index, stream in enumerate(streams):
            if stream._told and index not in order:
                order.append(index)
    assert order == sorted(order)
    assert len(order) == 6


def test_too_many_waiting_requests_are_refused(model: Llava, processor: Processor) -> None:
    engine = make(model, processor, max_batch=1, max_waiting=2)
    kept = [engine.submit(request("Star?")) for _ in range(2)]
    with pytest.raises(BusyError, match="2 requests wait already"):
        engine.submit(request("Star?"))
    assert len({text_of(stream) for stream in kept}) == 1


def test_a_request_that_no_cache_of_this_size_holds_is_refused_with_the_numbers(
    model: Llava, processor: Processor
) -> None:
    engine = make(model, processor, cache_tokens=32)
    with pytest.raises(TooLongError, match=r"23 tokens and 100 of an answer; the cache holds 32"):
        engine.submit(request("Star?", picture(1), count=100))
    assert text_of(engine.submit(request("Star?", picture(1), count=4)))


# Who ends


def test_a_cancelled_request_frees_its_blocks_within_a_step(engine: Engine) -> None:
    stream = engine.submit(request("What is this?", picture(1), count=100))
    other = engine.submit(request("Star?"))
    next(stream)
    held = engine.state().held_tokens
    stream.cancel()
    engine.step()
    assert engine.state().held_tokens < held
    assert engine.state().running == 1
    *_, last = stream
    assert last.finish_reason == "cancelled"
    assert text_of(other)


def test_what_is_dropped_unread_ends(engine: Engine) -> None:
    next(engine.submit(request("What is this?", count=100)))
    engine.step()
    assert engine.state().running == 0
    assert engine.state().held_tokens == 0


def test_a_bad_picture_ends_its_own_request_alone(
    engine: Engine, model: Llava, processor: Processor
) -> None:
    good = engine.submit(request("What is this?", picture(1)))
    bad = engine.submit(Request((Message("user", (ImagePart("nowhere.png"), TextPart("?"))),)))
    after = engine.submit(request("Star?", picture(2)))
    with pytest.raises(ImageError, match=r"nowhere\.png"):
        text_of(bad)
    assert text_of(good) == fresh(model, processor, ask("What is this?", picture(1)))
    assert text_of(after) == fresh(model, processor, ask("Star?", picture(2)))
    assert engine.state().held_tokens == 0


@pytest.mark.parametrize("work", ["read", "step"])
def test_a_request_that_fails_in_the_model_ends_alone(
    engine: Engine, model: Llava, processor: Processor, monkeypatch: pytest.MonkeyPatch, work: str
) -> None:
    streams = [engine.submit(request("What is this?", picture(seed))) for seed in range(3)]
    victim = streams[1]._answers[0]
    plain = getattr(engine._runner, work)

    def broken(chunks: Sequence[Chunk]) -> torch.Tensor:
        if any(chunk.answer is victim for chunk in chunks):
            raise torch.OutOfMemoryError("too much")
        return plain(chunks)

    monkeypatch.setattr(engine._runner, work, broken)
    with pytest.raises(EngineError, match="out of memory"):
        text_of(streams[1])
    for seed in (0, 2):
        expected = fresh(model, processor, ask("What is this?", picture(seed)))
        assert text_of(streams[seed]) == expected
    assert engine.state().held_tokens == 0


def test_many_threads_get_their_own_answers(
    engine: Engine, model: Llava, processor: Processor
) -> None:
    questions = [ask("What is this?", picture(seed % 4)) for seed in range(8)]
    answers = [""] * len(questions)

    def work(index: int) -> None:
        answers[index] = text_of(engine.submit(Request(questions[index], Sampling(NUM_NEW))))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(questions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == [fresh(model, processor, question) for question in questions]


# What is told


def test_an_answer_ends_before_a_stop_text(engine: Engine, processor: Processor) -> None:
    whole = text_of(engine.submit(request("What is this?", picture(1))))
    stop = whole[4:7]
    sampling = Sampling(NUM_NEW, stop=(stop,))
    pieces = list(engine.submit(Request(ask("What is this?", picture(1)), sampling)))
    assert "".join(piece.text for piece in pieces) == whole[: whole.index(stop)]
    assert pieces[-1].finish_reason == "stop"


def test_an_answer_ends_at_a_stop_token(engine: Engine) -> None:
    every_id = tuple(range(engine.model.spec.decoder.vocab_size))
    (piece,) = engine.submit(Request(ask("What?"), Sampling(NUM_NEW, stop_tokens=every_id)))
    assert (piece.text, piece.finish_reason, piece.num_tokens) == ("", "stop", 1)


def test_logprobs_come_with_every_token(engine: Engine) -> None:
    sampling = Sampling(NUM_NEW, num_logprobs=3)
    pieces = list(engine.submit(Request(ask("What is this?", picture(1)), sampling)))
    told = [one for piece in pieces for one in piece.logprobs]
    assert len(told) == sum(piece.num_tokens for piece in pieces)
    for one in told:
        assert len(one.top) == 3
        assert one.top[0] == (one.token, one.logprob)  # greedy takes the likeliest
        assert one.logprob <= 0


def test_usage_comes_with_the_last_piece_alone(engine: Engine) -> None:
    *before, last = pieces = list(engine.submit(request("What is this?", picture(1))))
    assert all(piece.usage is None for piece in before)
    assert last.usage is not None
    assert last.usage.answer == sum(piece.num_tokens for piece in pieces)


def test_memory_of_the_cache_is_given_up_front_and_told(model: Llava, processor: Processor) -> None:
    state = make(model, processor, cache_tokens=100).state()
    assert state.cache_tokens == 112  # whole blocks
    assert state.cache_bytes == 112 * 2 * 3 * 2 * 12 * 4  # layers, heads, their width, fp32


@pytest.mark.parametrize("name", ["max_batch", "chunk_tokens", "cache_tokens"])
def test_senseless_engines_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is 0"):
        EngineSettings(**{name: 0})  # type: ignore[arg-type]


def test_several_answers_are_one_or_more(engine: Engine) -> None:
    with pytest.raises(EngineError, match="num_answers is 0"):
        engine.submit(Request(ask("?"), num_answers=0))


def test_pieces_are_told_to_those_who_asked(engine: Engine) -> None:
    pieces: list[Piece] = list(engine.respond([ask("Star?"), ask("Red?")], Sampling(3)))
    assert {piece.index for piece in pieces} == {0, 1}


# What is shown of a picture


@pytest.mark.parametrize("choice", ["diverse", "uniform", "random"])
def test_fewer_visual_tokens_give_what_the_model_gives_for_them_alone(
    model: Llava, processor: Processor, choice: str
) -> None:
    settings = EngineSettings(visual_tokens=5, visual_choice=choice)
    engine = Engine(model, processor, settings=settings)
    question = ask("What is in them?", picture(1), picture(2))
    *_, last = pieces = list(engine.submit(Request(question, Sampling(NUM_NEW))))
    assert "".join(piece.text for piece in pieces) == shown_alone(
        model, processor, question, choice
    )
    assert last.usage is not None
    assert last.usage.prompt == len(processor.encode(question, is_answering=True).ids) - 2 * 11


@torch.inference_mode()
def shown_alone(model: Llava, processor: Processor, conversation: Conversation, choice: str) -> str:
    """The greedy answer where all but the chosen features are cut out of the embedded prompt."""
    inputs = processor.batch([conversation])
    assert inputs.pixel_values is not None
    embeds = model.embed(inputs.input_ids, inputs.pixel_values)
    is_kept = inputs.input_ids[0] != processor.image_token_id
    for index, features in enumerate(model.encode_images(inputs.pixel_values)):
        places = (inputs.input_ids[0] == processor.image_token_id).nonzero()[:, 0]
        is_kept[places[16 * index + choose_tokens(features, 5, choice)]] = True
    embeds, positions = embeds[:, is_kept], inputs.positions[:, is_kept]
    made: list[int] = []
    while len(made) < NUM_NEW and processor.end_id not in made:
        hidden = model.language_model(embeds, positions)
        made.append(int(model.language_model.lm_head(hidden[0, -1]).argmax()))
        embeds = torch.cat([embeds, model.embed_words(torch.tensor([made[-1:]]))], 1)
        positions = torch.cat([positions, positions[:, -1:] + 1], 1)
    return processor.decode(made).rstrip("\ufffd")


def test_fewer_visual_tokens_are_reused_like_all(model: Llava, processor: Processor) -> None:
    settings = EngineSettings(visual_tokens=14)
    engine = Engine(model, processor, settings=settings)
    questions = [ask(text, picture(1), picture(2)) for text in ("What is this?", "How many stars?")]
    answers = [text_of(engine.submit(Request(one, Sampling(NUM_NEW)))) for one in questions]
    assert engine.state().pictures == 2
    assert engine.state().counts.reused_tokens == 16
    cold = [Engine(model, processor, settings=settings) for _ in questions]
    assert answers == [
        text_of(one.submit(Request(question, Sampling(NUM_NEW))))
        for one, question in zip(cold, questions, strict=True)
    ]
