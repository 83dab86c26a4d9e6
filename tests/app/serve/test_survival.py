"""What happens when clients leave, crowd in or dawdle, and when the server is told to stop."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from asking import Serve, Served, data_url, picture, user

from lapilli.app.serve.application import Settings
from lapilli.app.serve.limits import Limits
from lapilli.app.serve.running import make_server
from lapilli.checkpoints import native
from lapilli.engine.engine import Engine
from lapilli.model.llava import Llava
from lapilli.processor.processor import Processor

CHAT = "/v1/chat/completions"


LONG = {
    "response_format": {
        "type": "json_schema",
        "json_schema": {
            "name": "long",
            "schema": {"type": "array", "items": {"type": "boolean"}, "minItems": 2000},
        },
    }
}
"""An answer that does not end by itself."""


def body(text: str, count: int = 2000, **settings: Any) -> dict[str, Any]:
    return {"model": "small", "messages": [user(text)], "max_tokens": count} | settings


def wait_until(is_so: Any, seconds: float) -> float:
    """Seconds until something is so."""
    begun = time.monotonic()
    while not is_so():
        assert time.monotonic() - begun < seconds, "it did not come to be"
        time.sleep(0.005)
    return time.monotonic() - begun


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_frees_the_place_within_a_second(serve: Serve, stream: bool) -> None:
    with serve(max_batch=1) as served:
        request = json.dumps(body("Go on.", stream=stream, **LONG)).encode()
        with socket.create_connection(("127.0.0.1", served.port)) as connection:
            connection.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
                b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"
                % len(request)
                + request
            )
            wait_until(lambda: served.engine.state().running == 1, 20)
            if stream:
                assert connection.recv(100).startswith(b"HTTP/1.1 200")
            assert served.engine.state().running == 1
        assert wait_until(lambda: served.engine.state().running == 0, 20) < 1
        assert served.engine.state().counts.answer_tokens < 2000


def test_who_leaves_the_queue_is_never_begun(serve: Serve) -> None:
    with serve(max_batch=1) as served, httpx.Client(base_url=served.url, trust_env=False) as web:
        with web.stream("POST", CHAT, json=body("Go on.", stream=True, **LONG)) as first:
            lines = first.iter_lines()  # kept: where it is dropped, the connection is closed
            next(lines)
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{served.url}{CHAT}", json=body("Me too."), timeout=0.3)
            wait_until(lambda: served.engine.state().waiting == 0, 5)
            assert served.engine.state().running == 1
        wait_until(lambda: not served.engine.has_work, 5)
        assert served.engine.state().counts.answers == 2


def test_an_answer_that_fails_hurts_no_other(
    serve: Serve, alone: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve() as served, served.client() as client:
        read = served.engine._runner.read

        def fail_sometimes(chunks: Any) -> Any:
            if any(len(chunk.answer.prompt.ids) > 100 for chunk in chunks):
                raise RuntimeError("no more")
            return read(chunks)

        monkeypatch.setattr(served.engine._runner, "read", fail_sometimes)
        replies: list[Any] = [None] * 8

        def ask(index: int) -> None:
            text = "How many?" if index % 2 else "How many? " * 30
            response = httpx.post(f"{served.url}{CHAT}", json=body(text, 20), timeout=60)
            replies[index] = (response.status_code, response.json())

        threads = [threading.Thread(target=ask, args=(index,)) for index in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [status for status, _ in replies] == [500, 200] * 4
        assert replies[0][1]["error"]["code"] == "engine_failed"
        texts = {reply["choices"][0]["message"]["content"] for _, reply in replies[1::2]}
        assert len(texts) == 1
        assert client.models.list().data


def test_an_answer_that_takes_too_long_is_ended(serve: Serve) -> None:
    settings = Settings("small", Limits(answer_seconds=1))
    with serve(settings, max_batch=1) as served:
        held = threading.Event()
        step = served.engine.step
        served.engine.step = lambda: (held.wait(0.05), step())[1]  # type: ignore[method-assign]
        response = httpx.post(f"{served.url}{CHAT}", json=body("Go on.", **LONG), timeout=60)
        assert (response.status_code, response.json()["error"]["code"]) == (503, "timeout")
        streamed = httpx.post(
            f"{served.url}{CHAT}", json=body("Go on.", stream=True, **LONG), timeout=60
        )
        *_, last = [line for line in streamed.text.splitlines() if line]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"
        wait_until(lambda: served.engine.state().running == 0, 2)


def closed_after(connection: socket.socket, seconds: float) -> float:
    """Seconds until the other side closes."""
    begun = time.monotonic()
    connection.settimeout(seconds)
    try:
        while connection.recv(65536):
            pass
    except ConnectionResetError:
        pass
    return time.monotonic() - begun


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: loc",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /health HTTP/1.1\r\nHo",
    ],
    ids=["nothing", "half a head", "half a body", "a second head by halves"],
)
def test_a_client_that_sends_slowly_is_left(serve: Serve, sent: bytes) -> None:
    settings = Settings("small", Limits(client_seconds=1))
    with serve(settings) as served:
        with socket.create_connection(("127.0.0.1", served.port)) as connection:
            connection.sendall(sent)
            assert 0.5 < closed_after(connection, 20) < 4
        assert httpx.get(f"{served.url}/health").status_code == 200


def test_a_client_that_does_not_read_is_left() -> None:
    left = threading.Event()

    async def pour(scope: Any, receive: Any, send: Any) -> None:
        """Send without end, until the client is gone."""
        if scope["type"] == "lifespan":
            for kind in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{kind}.complete"})
            return
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        gone = asyncio.ensure_future(receive())
        while not gone.done():
            await send({"type": "http.response.body", "body": bytes(2**16), "more_body": True})
            await asyncio.sleep(0)
        left.set()

    server = make_server(pour, Limits(client_seconds=1))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        with socket.create_connection(listener.getsockname()) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            begun = time.monotonic()
            assert left.wait(20)
            assert 0.9 < time.monotonic() - begun < 10
        server.should_exit = True
        thread.join(20)


# The whole program


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model: Llava, processor: Processor) -> Path:
    """The small model, as the program loads it."""
    path = tmp_path_factory.mktemp("served") / "small"
    native.save(path, model, processor)
    return path


class Program:
    """`lapilli serve` in a process of its own."""

    def __init__(self, *arguments: str) -> None:
        command = "from lapilli.app.cli.main import main; main()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", command, "serve", "--port", "0", *arguments],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert self.process.stderr is not None
        self.line = self.process.stderr.readline()
        self.url = self.line.partition(" at ")[2].strip().removesuffix("/v1")

    def end(self) -> tuple[int, str]:
        """Wait for its end, and return its exit code and what else it said."""
        _, said = self.process.communicate(timeout=60)
        return self.process.returncode, said


@pytest.fixture
def program(folder: Path) -> Iterator[Program]:
    running = Program("--model", str(folder), "--log-requests", "--max-batch", "2")
    yield running
    running.process.kill()
    running.process.communicate()


@pytest.mark.slow
def test_sigterm_finishes_what_runs_and_takes_nothing_new(program: Program) -> None:
    assert program.line.startswith("serving small at http://127.0.0.1:"), program.line
    with (
        httpx.Client(base_url=program.url, timeout=60, trust_env=False) as web,
        web.stream("POST", CHAT, json=body("Secret words.", 600, stream=True, **LONG)) as response,
    ):
        lines = response.iter_lines()
        told = [next(lines) for _ in range(8)]
        program.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 20
        with pytest.raises(httpx.ConnectError):
            while time.monotonic() < deadline:
                httpx.get(f"{program.url}/health", timeout=5)
                time.sleep(0.01)
        told += lines
    events = [line.removeprefix("data: ") for line in told if line]
    assert events[-1] == "[DONE]"
    assert json.loads(events[-2])["choices"][0]["finish_reason"] in ("length", "stop")
    code, said = program.end()
    assert code == 0
    (logged,) = [json.loads(line[line.index("{") :]) for line in said.splitlines() if CHAT in line]
    assert (logged["status"], logged["code"]) == (200, None)
    assert "Secret" not in said


@pytest.mark.slow
def test_a_thousand_requests_of_a_hundred_connections_are_all_answered_or_refused(
    folder: Path,
) -> None:
    running = Program("--model", str(folder), "--max-batch", "8", "--max-waiting", "32")
    try:
        outcomes, most, first = asyncio.run(crowd(running))
    finally:
        running.process.send_signal(signal.SIGTERM)
        code, said = running.end()
    assert sum(outcomes.values()) == 1000
    assert set(outcomes) <= {(200, None), (429, "queue_full"), (503, "overloaded")}
    assert outcomes[200, None] >= 40
    assert most - first < 200 * 2**20
    assert (code, said) == (0, "")
    print(dict(outcomes), f"{first / 2**20:.0f} MiB before, {most / 2**20:.0f} at most")


async def crowd(running: Program) -> tuple[Counter[tuple[int, str | None]], int, int]:
    """Ask 1,000 times over 100 connections; how that went, and the memory at most and before."""
    outcomes: Counter[tuple[int, str | None]] = Counter()
    memory = psutil.Process(running.process.pid).memory_info
    urls = [data_url(picture(seed)) for seed in range(20)]
    limits = httpx.Limits(max_connections=100, max_keepalive_connections=100)
    async with httpx.AsyncClient(
        base_url=running.url, timeout=300, limits=limits, trust_env=False
    ) as web:

        async def ask(index: int) -> None:
            image = {"type": "image_url", "image_url": {"url": urls[index % 20]}}
            content = [image, {"type": "text", "text": f"How many are there of {index}?"}]
            asked = body("", 8) | {"messages": [{"role": "user", "content": content}]}
            response = await web.post(CHAT, json=asked)
            found = response.json()
            if response.status_code == 200:
                assert found["choices"][0]["finish_reason"] in ("stop", "length")
            outcomes[response.status_code, found.get("error", {}).get("code")] += 1

        await ask(0)
        first = most = memory().rss
        work = asyncio.gather(*(ask(index) for index in range(1, 1000)))
        while not work.done():
            await asyncio.sleep(0.1)
            most = max(most, memory().rss)
        await work
    return outcomes, most, first


@pytest.mark.slow
def test_a_port_that_is_taken_is_one_line(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        running = Program("--model", str(folder), "--port", port)
        code, said = running.end()
    assert (code, said) == (1, "")
    assert running.line.startswith(f"error: 127.0.0.1:{port}: Address already in use; give another")


def test_all_pictures_of_a_served_crowd_are_their_own(serve: Serve, alone: Engine) -> None:
    """The same words about different pictures, asked at once."""
    from lapilli.messages import ImagePart, Message, Request, Sampling, TextPart

    def expected(seed: int) -> str:
        parts = (ImagePart(picture(seed)), TextPart("What?"))
        request = Request((Message("user", parts),), Sampling(8))
        return "".join(piece.text for piece in alone.submit(request)).lstrip()

    async def ask(served: Served) -> list[str]:
        async with httpx.AsyncClient(base_url=served.url, timeout=60, trust_env=False) as web:
            bodies = [
                body("", 8) | {"messages": [user(picture(seed % 10), "What?")]}
                for seed in range(30)
            ]
            replies = await asyncio.gather(*(web.post(CHAT, json=one) for one in bodies))
            return [reply.json()["choices"][0]["message"]["content"] for reply in replies]

    with serve() as served:
        answers = asyncio.run(ask(served))
    known = [expected(seed) for seed in range(10)]
    assert len(set(known)) > 1
    assert answers == [known[seed % 10] for seed in range(30)]
