from __future__ import annotations

import asyncio
import time

import pytest
from PIL import Image

from lapilli.engine.asynchronous import AsyncEngine
from lapilli.engine.engine import Engine
from lapilli.engine.settings import EngineSettings
from lapilli.errors import BusyError, EngineError, ImageError
from lapilli.messages import ImagePart, Message, Request, Sampling, TextPart
from lapilli.model.llava import Llava
from lapilli.processor.processor import Picture, Processor


def request(text: str, count: int = 12) -> Request:
    return Request((Message("user", (TextPart(text),)),), Sampling(count))


async def text_of(engine: AsyncEngine, asked: Request) -> str:
    return "".join([piece.text async for piece in engine.stream(asked)])


def test_many_readers_get_their_own_answers(
    engine: Engine, model: Llava, processor: Processor
) -> None:
    questions = [request(f"Star {index}?") for index in range(20)]

    async def ask() -> list[str]:
        async with AsyncEngine(engine) as asynchronous:
            return await asyncio.gather(*(text_of(asynchronous, one) for one in questions))

    alone = Engine(model, processor)
    expected = ["".join(piece.text for piece in alone.submit(one)) for one in questions]
    assert asyncio.run(ask()) == expected


def test_a_reader_that_leaves_frees_its_place(engine: Engine) -> None:
    async def leave() -> None:
        async with AsyncEngine(engine) as asynchronous:
            stream = asynchronous.stream(request("Star?", 150))
            await anext(stream)
            await stream.aclose()
            deadline = time.monotonic() + 5
            while engine.has_work and time.monotonic() < deadline:
                await asyncio.sleep(0.01)
            assert engine.state().running == 0
            assert engine.state().counts.answer_tokens < 140

    asyncio.run(leave())


def test_a_cancelled_task_frees_its_place(engine: Engine) -> None:
    async def leave() -> None:
        async with AsyncEngine(engine) as asynchronous:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    while True:
                        await text_of(asynchronous, request("Star?", 150))
        assert engine.state().running == 0

    asyncio.run(leave())


def test_what_has_begun_is_finished_when_it_closes_and_nothing_more_is_taken(
    engine: Engine,
) -> None:
    async def close() -> str:
        asynchronous = AsyncEngine(engine)
        stream = asynchronous.stream(request("Star?", 30))
        first = await anext(stream)
        await asynchronous.close()
        with pytest.raises(EngineError, match="closing"):
            await text_of(asynchronous, request("Star?"))
        return first.text + "".join([piece.text async for piece in stream])

    whole = "".join(piece.text for piece in engine.submit(request("Star?", 30)))
    assert asyncio.run(close()) == whole


def test_errors_reach_their_reader_alone(engine: Engine) -> None:
    bad = Request((Message("user", (ImagePart("nowhere.png"), TextPart("?"))),))

    async def ask() -> list[object]:
        async with AsyncEngine(engine) as asynchronous:
            asked = (text_of(asynchronous, one) for one in (request("Star?"), bad))
            return list(await asyncio.gather(*asked, return_exceptions=True))

    good, error = asyncio.run(ask())
    assert isinstance(good, str)
    assert isinstance(error, ImageError)


def test_a_full_queue_refuses(model: Llava, processor: Processor) -> None:
    engine = Engine(model, processor, settings=EngineSettings(max_batch=1, max_waiting=1))

    async def ask() -> list[object]:
        async with AsyncEngine(engine) as asynchronous:
            asked = (text_of(asynchronous, request("Star?", 100)) for _ in range(12))
            return list(await asyncio.gather(*asked, return_exceptions=True))

    answers = asyncio.run(ask())
    texts = [answer for answer in answers if isinstance(answer, str)]
    refused = [answer for answer in answers if isinstance(answer, BusyError)]
    assert texts and refused
    assert len(texts) + len(refused) == 12


def test_a_step_that_fails_ends_its_answers_and_the_next_ones_are_given(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = "".join(piece.text for piece in engine.submit(request("Star?")))
    steps = iter([RuntimeError("broken"), RuntimeError("broken again")])
    step = engine.step

    def fail_first() -> bool:
        error = next(steps, None)
        if error is not None:
            raise error
        return step()

    monkeypatch.setattr(engine, "step", fail_first)

    async def ask() -> list[object]:
        async with AsyncEngine(engine) as asynchronous:
            return [
                (
                    await asyncio.gather(
                        text_of(asynchronous, request("Star?")), return_exceptions=True
                    )
                )[0]
                for _ in range(3)
            ]

    first, second, third = asyncio.run(ask())
    assert all(isinstance(error, EngineError) for error in (first, second))
    assert third == whole


def test_a_picture_that_breaks_the_opening_hurts_its_own_answer_alone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_picture = engine.processor.open

    def break_small(picture: Picture) -> Image.Image:
        opened = open_picture(picture)
        if opened.width == 1:
            raise MemoryError
        return opened

    monkeypatch.setattr(engine.processor, "open", break_small)

    def about(side: int) -> Request:
        return Request((Message("user", (ImagePart(Image.new("RGB", (side, side))),)),))

    async def ask() -> list[object]:
        async with AsyncEngine(engine) as asynchronous:
            asked = (text_of(asynchronous, one) for one in (about(8), about(1), request("Star?")))
            return list(await asyncio.gather(*asked, return_exceptions=True))

    good, error, other = asyncio.run(ask())
    assert isinstance(good, str) and isinstance(other, str)
    assert isinstance(error, EngineError)
