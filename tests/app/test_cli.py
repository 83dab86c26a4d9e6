from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lapilli.app.cli.describe import ALT_MAX_CHARACTERS, shorten
from lapilli.app.cli.main import main
from lapilli.checkpoints.catalogue import Entry
from lapilli.errors import CheckpointError, ImageError

VERBS = ["ask", "chat", "describe", "train", "eval", "data", "data make", "models"]
Run = Callable[..., tuple[int, str, str]]


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

    def __init__(self, model: str | None = None, *, device: str = "auto", dtype: Any = None):
        if model and not Path(model).is_dir():
            raise CheckpointError(f"{model}: no such model folder;\nname one that is there")
        self.model, self.device = model, device
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
    """What the verbs handed to the code behind them."""

    of: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=dict)

    def take(self, name: str) -> Callable[..., None]:
        def called(*args: Any, **kwargs: Any) -> None:
            self.of[name] = args, kwargs

        return called


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Put fakes in the places from which the verbs import."""

    def put(name: str, **members: Any) -> None:
        module = types.ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)

    taken = Calls()
    FakeAssistant.made = []
    put("lapilli.assistant", MultimodalAssistant=FakeAssistant)
    put("lapilli.app.training", train_recipes=taken.take("train_recipes"))
    put(
        "lapilli.app.measuring",
        eval_drawn=taken.take("eval_drawn"),
        eval_photos=taken.take("eval_photos"),
    )
    put("lapilli.app.drawing", make_drawn=taken.take("make_drawn"), DrawnData=dict)
    tiny = Entry(
        "lapilli-tiny", 11_834_624, 23_700_000, 47_338_496, "Apache-2.0", "", True, ("ask", "eval")
    )
    absent = Entry("lapilli-large", None, None, None, "MIT", "", False, ("ask",))
    put("lapilli.checkpoints.catalogue", entries=lambda: [tiny, absent])
    monkeypatch.delenv("LAPILLI_MODEL", raising=False)
    return taken


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run_main(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as done:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert isinstance(done.value.code, int)
        return done.value.code, out, err

    return run_main


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("a.png", "sub/b.JPG", "bad.png", "notes.txt"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return tmp_path / "photos"


# Help and wrong calls


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_shows_examples(run: Run, verb: str) -> None:
    code, out, err = run(*verb.split(), "--help")
    assert (code, err) == (0, "")
    assert f"\n  Examples:\n    lapilli {verb}" in out


def test_help_of_every_verb_is_listed(run: Run) -> None:
    out = run("--help")[1]
    assert all(f"\n  {verb.split()[0]}" in out for verb in VERBS)


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_loads_no_torch(verb: str) -> None:
    code = (
        "import sys\nfrom lapilli.app.cli.main import main\n"
        f"try: main({[*verb.split(), '--help']})\n"
        "except SystemExit: print({'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_version_is_printed(run: Run) -> None:
    assert run("--version")[:2] == (0, "lapilli 0.1.0\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ask"], "error: no picture"),
        (["ask", "What is this?"], "error: no picture"),
        (["ask", "a.png", ""], "error: the question is empty"),
        (["ask", "a.png", "  "], "error: the question is empty"),
        (["ask", "a.png", __file__], "is a file: put the question last"),
        (["ask", __file__], "error: no question: put it last"),
        (["chat", "gone.png"], "error: gone.png: no such file"),
        (["train", "no-such-recipe"], "error: no-such-recipe: no such recipe"),
        (["data", "make", "drawn", "out", "--collages", "3"], "name their folder with --photos"),
        (["data", "make", "drawn", "out", "--photos", "gone"], "--photos gone: no such folder"),
        (["data", "make", "drawn", "out", "--books", "gone"], "--books gone: no such folder"),
        (["data", "make", "drawn", __file__], "a file; name a folder to fill"),
        (["eval", "photos"], "name their folder with --photos"),
        (["eval", "photos", "--photos", "data", "--blind", "m"], "--blind goes with eval drawn"),
        (["eval", "drawn", "--photos", "data"], "--photos goes with eval photos"),
        (["eval", "drawn", "--json", "gone/a.json"], "gone/a.json: cannot be written (No such"),
        (["eval", "drawn", "--gallery", "."], "error: .: cannot be written (Is a directory)"),
        (["eval", "photos", "--photos", ".", "--json", f"{__file__}/a"], "cannot be written (Not"),
    ],
)
def test_wrong_call_is_one_line_and_exit_code_2(
    run: Run, calls: Calls, arguments: list[str], said: str
) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
    assert not FakeAssistant.made
    assert not calls.of


@pytest.mark.parametrize(
    "arguments",
    [
        ["frob"],
        ["ask", "--frob"],
        ["eval", "frob"],
        ["eval", "drawn", "--grade", "x"],
        ["eval", "drawn", "--seed", "10"],
        ["describe"],
    ],
)
def test_call_that_cannot_be_parsed_exits_with_2(run: Run, arguments: list[str]) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert "Error: " in err


# Failures


def test_failure_is_one_line_on_stderr_and_exit_code_1(run: Run, tmp_path: Path) -> None:
    missing = tmp_path / "model"
    code, out, err = run("ask", "a.png", "What?", "--model", missing)
    assert (code, out) == (1, "")
    assert err == f"error: {missing}: no such model folder; name one that is there\n"


def test_model_is_taken_from_the_environment(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAPILLI_MODEL", "not-there")
    assert run("ask", "a.png", "What?")[2].startswith("error: not-there")


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(CheckpointError):
        main(["ask", "a.png", "What?", "--model", "not-there", "--debug"])


def test_file_that_cannot_be_written_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_args: object, **_kwargs: object) -> None:
        raise PermissionError(13, "Permission denied", "scores.json")

    monkeypatch.setattr(sys.modules["lapilli.app.measuring"], "eval_drawn", denied)
    assert run("eval", "drawn") == (1, "", "error: scores.json: Permission denied\n")


def test_interrupt_says_so_and_exits_with_130(run: Run) -> None:
    assert run("ask", "a.png", "interrupt") == (130, "", "\nstopped\n")


@pytest.mark.skipif(not hasattr(signal, "SIGPIPE"), reason="needs POSIX pipes")
def test_closed_pipe_ends_quietly() -> None:
    code = (
        "import sys, types\nfake = types.ModuleType('x')\n"
        "class A:\n def __init__(self, *a, **k): pass\n"
        " def query_many(self, rows): return ['x' * 100000 for _ in rows]\n"
        "fake.MultimodalAssistant = A\nsys.modules['lapilli.assistant'] = fake\n"
        "from lapilli.app.cli.main import main\nmain(['describe', *['a.png'] * 64, '--json'])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr as errors:
        assert errors.read() == b""
    assert process.wait() == 1


# Verbs


def test_answer_is_all_that_ask_prints(run: Run) -> None:
    assert run("ask", "a.png", "b.png", "What?") == (0, "a.png b.png: What?\n", "")


def test_ask_takes_a_question_longer_than_a_file_name(run: Run) -> None:
    question = "why " * 200
    assert run("ask", "a.png", question)[0] == 0


def test_ask_prints_json(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("ask", "ä.png", "What?", "--json", "--model", tmp_path, "--device", "cpu")
    assert code == 0
    assert json.loads(out) == {
        "model": str(tmp_path),
        "images": ["ä.png"],
        "question": "What?",
        "answer": "ä.png: What?",
    }
    assert FakeAssistant.made[0].device == "cpu"


def test_ask_streams_to_a_terminal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert run("ask", "a.png", "What?")[1] == "streamed What?\n"


def test_chat_keeps_pictures_until_the_next_question(
    run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = iter(
        ["first", "", f"/image {photos / 'a.png'}", "/image gone.png", "fail", "/frob",
         "second", "/reset", "third", "/quit", "never"]
    )  # fmt: skip
    monkeypatch.setattr("builtins.input", lambda _prompt="": next(lines))
    code, out, err = run("chat", photos / "sub" / "b.JPG")
    assert code == 1  # a script must see that a turn failed
    assert out.splitlines() == ["You said first", "You said second", "You said third"]
    assert [line.partition(";")[0].partition(": /image")[0] for line in err.splitlines()] == [
        "error: gone.png: no such file",
        "error: bad.png: not a picture",
        "error: unknown command /frob",
    ]
    (assistant,) = FakeAssistant.made
    assert [chat.images for chat in assistant.chats] == [[photos / "sub" / "b.JPG"], []]
    # the picture went with "fail", the question that it was shown for
    assert assistant.said == [("first", []), ("second", []), ("third", [])]


def test_chat_at_a_terminal_leaves_with_0_whatever_failed(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = iter(["fail", "/quit"])
    monkeypatch.setattr("builtins.input", lambda _prompt="": next(lines))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    code, _, err = run("chat")
    assert code == 0
    assert "error: bad.png: not a picture" in err


def test_chat_shows_a_picture_with_the_next_question(
    run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = iter([f"/image {photos / 'a.png'}", "what?", "and?"])

    def read(_prompt: str = "") -> str:
        for line in lines:
            return line
        raise EOFError

    monkeypatch.setattr("builtins.input", read)
    assert run("chat")[0] == 0
    assert FakeAssistant.made[0].said == [("what?", [photos / "a.png"]), ("and?", [])]


def test_describe_goes_on_after_a_bad_picture(run: Run, photos: Path) -> None:
    code, out, err = run("describe", photos, "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 1
    assert [Path(row["image"]).name for row in rows] == ["a.png", "b.JPG"]
    assert rows[0]["text"].startswith("a.png: ")
    assert err == f"error: {photos / 'bad.png'}: not a picture\n"


def test_describe_prints_a_table(run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    code, out, err = run("describe", photos / "a.png", photos / "sub")
    assert (code, err) == (0, "")
    assert "description" in out
    assert str(photos / "sub" / "b.JPG") in out


def test_describe_passes_over_a_folder_with_the_name_of_a_picture(run: Run, photos: Path) -> None:
    (photos / "sub" / "folder.png").mkdir()
    assert run("describe", photos / "sub", "--json")[1].count("\n") == 1


def test_describe_refuses_a_folder_without_pictures(run: Run, tmp_path: Path) -> None:
    code, _, err = run("describe", tmp_path)
    assert code == 2
    assert err == f"error: {tmp_path}: no pictures in this folder; name files or another one\n"


@pytest.mark.parametrize("text", ["word " * 100, "x" * 300, "a" * 124 + " b c"])
def test_alt_text_fits_its_limit(text: str) -> None:
    short = shorten(text, ALT_MAX_CHARACTERS)
    assert len(short) <= ALT_MAX_CHARACTERS
    assert short.endswith("…")
    assert text.startswith(short[:-1])


def test_alt_text_that_fits_stays_on_one_line() -> None:
    assert shorten("A star,\n and  a ring.", 125) == "A star, and a ring."
    assert shorten("x" * 125, 125) == "x" * 125
    assert shorten("one two", 6) == "one…"
    assert shorten("one two", 4) == "one…"


def test_train_hands_on_recipe_and_settings(run: Run, calls: Calls, tmp_path: Path) -> None:
    code, *_ = run(
        "train", tmp_path, "--set", "stage.steps=1", "--set", "a.b=c", "--out", "x", "--no-resume"
    )
    assert code == 0
    assert calls.of["train_recipes"] == (
        (tmp_path,),
        {"out": Path("x"), "settings": ["stage.steps=1", "a.b=c"], "resume": False},
    )
    run("train", tmp_path)
    assert calls.of["train_recipes"][1] == {"out": Path("runs"), "settings": [], "resume": True}


def test_eval_hands_on_what_to_measure(run: Run, calls: Calls, tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    code, *_ = run(
        "eval", "drawn", "--grade", "hard", "--count", 7, "--split", "held-out", "--json", path
    )
    assert code == 0
    assert not path.exists()  # that it can be written was tried, and left no trace
    assert calls.of["eval_drawn"] == (
        (None,),
        {
            "grade": "hard",
            "per_kind": 7,
            "split": "held-out",
            "seed": 0,
            "device": "auto",
            "json_path": path,
            "gallery_path": None,
            "blind": None,
        },
    )


def test_eval_hands_on_a_blind_model(run: Run, calls: Calls) -> None:
    assert run("eval", "drawn", "--blind", "runs/blind/model")[0] == 0
    assert calls.of["eval_drawn"][1]["blind"] == "runs/blind/model"


def test_eval_leaves_earlier_results_until_there_are_new_ones(run: Run, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text("{}")
    assert run("eval", "drawn", "--json", tmp_path / "s.json")[0] == 0
    assert (tmp_path / "s.json").read_text() == "{}"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX pipes")
def test_eval_writes_to_a_pipe_without_trying_it_first(run: Run, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for a reader
    assert run("eval", "drawn", "--json", tmp_path / "pipe")[0] == 0


def test_eval_hands_on_photographs(run: Run, calls: Calls, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert run("eval", "photos", "--photos", "data", "--gallery", page)[0] == 0
    assert calls.of["eval_photos"] == (
        (None,),
        {
            "photos": Path("data"),
            "device": "auto",
            "json_path": None,
            "gallery_path": page,
        },
    )


def test_data_make_hands_on_what_to_draw(run: Run, calls: Calls) -> None:
    assert run("data", "make", "drawn", "out", "--pictures", 5, "--hard", 0, "--seed", 9)[0] == 0
    (data, out), _ = calls.of["make_drawn"]
    assert out == Path("out")
    assert (data["pictures"], data["hard"], data["seed"], data["photos"]) == (5, 0.0, 9, None)


def test_models_are_listed_as_a_table_and_as_json(run: Run) -> None:
    code, out, _ = run("models")
    assert code == 0
    assert [" ".join(line.split()) for line in out.splitlines()] == [
        "name parameters disk memory license for",
        "lapilli-tiny 11.8 M 23.7 MB 47.3 MB Apache-2.0 ask, eval",
        "lapilli-large - not here - MIT ask",
    ]
    rows = json.loads(run("models", "--json")[1])
    assert [(row["name"], row["parameters"]) for row in rows] == [
        ("lapilli-tiny", 11_834_624), ("lapilli-large", None),
    ]  # fmt: skip


def test_models_fit_a_narrow_terminal(run: Run) -> None:
    assert max(map(len, run("models")[1].splitlines())) <= 80
