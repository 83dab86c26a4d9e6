"""A small random model behind a real server on loopback, and the official client."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # tests import what they share

from asking import Serve, Served
from openai import OpenAI

from lapilli.app.serve.application import Settings, make_app
from lapilli.app.serve.running import make_server
from lapilli.engine.engine import Engine
from lapilli.engine.settings import EngineSettings
from lapilli.model.llava import Llava
from lapilli.model.spec import DecoderSpec, LlavaSpec, VisionSpec
from lapilli.processor.images import ImageSettings
from lapilli.processor.processor import Processor, PromptSettings
from lapilli.processor.tokenizer import train_tokenizer

CONTEXT = 2048


@pytest.fixture(scope="session")
def processor() -> Processor:
    words = [
        "How many red circles are there?",
        '{"name": "weather", "arguments": {"city": "Rome"}}',
    ]
    return Processor(
        train_tokenizer(words, 400),
        ImageSettings(32, "pad", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        PromptSettings(features_per_image=16, max_tokens=CONTEXT),
        files("lapilli").joinpath("assets/tiny/chat_template.jinja").read_text(),
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
def alone(model: Llava, processor: Processor) -> Engine:
    """An engine of the same model, for what the server should answer."""
    return Engine(model, processor)


@pytest.fixture(scope="session")
def serve(model: Llava, processor: Processor) -> Serve:
    """Return what runs a server in a thread."""

    @contextmanager
    def run(settings: Settings | None = None, **of_engine: int) -> Iterator[Served]:
        settings = settings or Settings("small")
        of_engine.setdefault("max_waiting", settings.limits.waiting)
        engine = Engine(model, processor, settings=EngineSettings(**of_engine))  # type: ignore[arg-type]
        server = make_server(make_app(engine, settings), settings.limits)
        server.config.host, server.config.port = "127.0.0.1", 0
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started and thread.is_alive():
            threading.Event().wait(0.01)
        try:
            (port,) = {s.getsockname()[1] for part in server.servers for s in part.sockets}
            yield Served(engine, port)
        finally:
            server.should_exit = True
            thread.join(30)
        assert not thread.is_alive()

    return run


@pytest.fixture(scope="module")
def served(serve: Serve) -> Iterator[Served]:
    """A server that all tests of a file share."""
    with serve() as found:
        yield found


@pytest.fixture
def client(served: Served) -> Iterator[OpenAI]:
    """The official client."""
    with served.client() as made:
        yield made
