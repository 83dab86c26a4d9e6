"""The command line from outside: help, wrong calls, failures and exit codes; fakes do the work."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lapilli import __version__
from lapilli.app.cli.main import main
from lapilli.errors import CheckpointError

VERBS = [
    "ask", "chat", "describe", "train", "eval", "data", "data make", "convert", "models",
    "models show",
]  # fmt: skip
Run = Callable[..., tuple[int, str, str]]

pytestmark = pytest.mark.usefixtures("calls")


# Help and wrong calls


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_shows_examples(run: Run, verb: str) -> None:
    code, out, err = run(*verb.split(), "--help")
    assert (code, err) == (0, "")
    assert f"\n  Examples:\n    lapilli {verb}" in out


def test_help_of_every_verb_is_listed(run: Run) -> None:
    out = run("--help")[1]
    assert all(f"\n  {verb.split()[0]}" in out for verb in VERBS)


def test_help_loads_no_torch() -> None:
    code = (
        "import sys\nfrom lapilli.app.cli.main import main\n"
        "heavy = {'torch', 'transformers', 'huggingface_hub'}\n"
        f"for verb in {['', *VERBS]}:\n"
        " try: main([*verb.split(), '--help'])\n"
        " except SystemExit: print('after', verb, heavy & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = [line for line in done.stdout.splitlines() if line.startswith("after ")]
    assert loaded == [f"after {verb} set()" for verb in ("", *VERBS)]


def test_version_is_printed(run: Run) -> None:
    assert run("--version")[:2] == (0, f"lapilli {__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ask"], "error: no picture"),
        (["ask", "What is this?"], "error: no picture"),
        (["ask", "a.png", ""], "error: the question is empty"),
        (["ask", "a.png", "  "], "error: the question is empty"),
        (["ask", "a.png", __file__], "is a file: put the question last"),
        (["ask", __file__], "error: no question: put it last"),
        (
            ["ask", "a.png", "What?", "--quantize", "int2"],
            "--quantize int2 is unknown; use int8 or int4",
        ),
        (["chat", "gone.png"], "error: gone.png: no such file"),
        (["train", "no-such-recipe"], "error: no-such-recipe: no such recipe"),
        (
            ["convert", "m", "out", "--to", "frob"],
            "--to frob is unknown; use native, hf, ",
        ),
        (["convert", "m", "out", "--to", "hf", "--type", "f16"], "--type goes with --to gguf"),
        (["convert", "m", "out", "--to", "gguf", "--type", "x"], "--type x is unknown; use f32"),
        (["convert", "m", __file__, "--to", "hf"], "not a folder; name a new one"),
        (["convert", "m", ".", "--to", "hf"], ".: not empty; name a new folder"),
        (["data", "make", "drawn", "out", "--collages", "3"], "name their folder with --photos"),
        (["data", "make", "drawn", "out", "--photos", "gone"], "--photos gone: no such folder"),
        (["data", "make", "drawn", "out", "--books", "gone"], "--books gone: no such folder"),
        (["data", "make", "drawn", __file__], "a file; name a folder to fill"),
        (["eval", "photos"], "name their folder with --photos"),
        (["eval", "photos", "--photos", "data", "--blind", "m"], "--blind goes with eval drawn"),
        (["eval", "photos", "--photos", "data", "--count", "5"], "--count goes with eval drawn"),
        (["eval", "photos", "--split", "held-out"], "--split goes with eval drawn; leave it out"),
        (["eval", "drawn", "--photos", "data"], "--photos goes with eval photos"),
        (["eval", "pope"], "eval pope needs its data set: name the folder with --data"),
        (["eval", "pope", "--data", "d", "--count", "5"], "--count goes with eval drawn; leave it"),
        (["eval", "drawn", "--data", "d"], "--data goes with eval a benchmark; leave it out of"),
        (["eval", "pope", "drawn", "--data", "d"], "drawn and photos are measured alone"),
        (["eval", "pope", "gqa", "--data", "d", "--gallery", "a.html"], "--gallery shows one task"),
        (["eval", "drawn", "--json", "gone/a.json"], "gone/a.json: cannot be written (No such"),
        (["eval", "drawn", "--gallery", "."], "error: .: cannot be written (Is a directory)"),
        (["eval", "photos", "--photos", ".", "--json", f"{__file__}/a"], "cannot be written (Not"),
    ],
)
def test_wrong_call_is_one_line_and_exit_code_2(
    run: Run, calls: Any, arguments: list[str], said: str
) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
    assert not calls.assistants
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
        ["convert", "m", "out"],
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
