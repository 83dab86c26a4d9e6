"""What tests of the command line share: calling it, and fakes of what stands behind the verbs."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lapilli.app.cli.main import main
from lapilli.checkpoints.catalogue import Details, Entry, memory_bytes
from lapilli.checkpoints.published import PUBLISHED
from lapilli.errors import CheckpointError, ImageError
from lapilli.model.spec import LlavaSpec

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Call the command line and return its exit code, stdout and stderr."""

    def run_main(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as done:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert isinstance(done.value.code, int)
        return done.value.code, out, err

    return run_main


@dataclass
class FakeChat:
    images: list[Any]
    said: list[tuple[str, list[Any]]]

    def stream(self, text: str, images: Any = ()) -> Iterator[str]:
        if text == "fail":
            raise ImageError("bad.png: not a picture")
        self.said.append((text, list(images)))
        yield from ("You said ", text)


class FakeAssistant:
    """Answers without a model; a picture named bad* cannot be opened."""

    made: list[FakeAssistant]

    def __init__(self, model: str | None = None, *, device: str = "auto", **settings: Any):
        if model and not Path(model).is_dir():
            raise CheckpointError(f"{model}: no such model folder;\nname one that is there")
        self.model, self.device = model, device
        self.quantize = settings.get("quantize")
        self.chats: list[FakeChat] = []
        self.said: list[tuple[str, list[Any]]] = []
        FakeAssistant.made.append(self)

    def query(self, images: Any, question: str) -> str:
        paths = images if isinstance(images, list) else [images]
        for path in paths:
            if path.name.startswith("bad"):
                raise ImageError(f"{path}: not a picture")
        if question == "interrupt":
            raise KeyboardInterrupt
        return " ".join(path.name for path in paths) + f": {question}"

    def query_many(self, requests: list[tuple[Any, str]]) -> list[str]:
        return [self.query(*request) for request in requests]

    def stream(self, images: Any, question: str) -> Iterator[str]:
        yield from ("streamed ", question)

    def chat(self, images: Any = ()) -> FakeChat:
        self.chats.append(FakeChat(list(images), self.said))
        return self.chats[-1]


@dataclass
class Calls:
    """What the verbs handed to the code behind them, and the assistants that they made."""

    assistants: list[FakeAssistant]
    of: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=dict)

    def take(self, name: str) -> Callable[..., None]:
        def called(*args: Any, **kwargs: Any) -> None:
            self.of[name] = args, kwargs

        return called


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Put fakes in the places from which the verbs import."""

    def put(name: str, **members: Any) -> None:
        module = types.ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)

    FakeAssistant.made = []
    taken = Calls(FakeAssistant.made)
    put("lapilli.assistant", MultimodalAssistant=FakeAssistant)
    put("lapilli.app.training", train_recipes=taken.take("train_recipes"))
    put(
        "lapilli.app.measuring",
        eval_drawn=taken.take("eval_drawn"),
        eval_photos=taken.take("eval_photos"),
    )
    put("lapilli.app.benchmarks", eval_benchmarks=taken.take("eval_benchmarks"))
    put("lapilli.app.drawing", make_drawn=taken.take("make_drawn"), DrawnData=dict)
    tiny = Entry(
        "lapilli-tiny", "inside the package", 11_834_624, 23_700_000, memory_bytes(11_834_624),
        "Apache-2.0", Path("tiny"), "BF16",
    )  # fmt: skip
    large = PUBLISHED["llava-1.5-7b"]
    absent = Entry(
        large.name, large.hub_id, large.parameters, 2 * large.parameters,
        memory_bytes(large.parameters), large.license, None, None,
    )  # fmt: skip
    details = {
        "tiny": Details(tiny, LlavaSpec(), None),
        large.name: Details(absent, None, large),
    }
    put(
        "lapilli.checkpoints.catalogue",
        entries=lambda: [tiny, absent],
        details=details.__getitem__,
    )
    monkeypatch.delenv("LAPILLI_MODEL", raising=False)
    return taken
