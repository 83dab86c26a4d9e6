"""What each verb prints, and what it hands to the code behind it, which is faked here."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lapilli.app.cli.describe import ALT_MAX_CHARACTERS, shorten

Run = Callable[..., tuple[int, str, str]]

pytestmark = pytest.mark.usefixtures("calls")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("a.png", "sub/b.JPG", "bad.png", "notes.txt"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return tmp_path / "photos"


def test_answer_is_all_that_ask_prints(run: Run) -> None:
    assert run("ask", "a.png", "b.png", "What?") == (0, "a.png b.png: What?\n", "")


def test_ask_takes_a_question_longer_than_a_file_name(run: Run) -> None:
    question = "why " * 200
    assert run("ask", "a.png", question)[0] == 0


def test_ask_prints_json(run: Run, calls: Any, tmp_path: Path) -> None:
    code, out, _ = run("ask", "ä.png", "What?", "--json", "--model", tmp_path, "--device", "cpu")
    assert code == 0
    assert json.loads(out) == {
        "model": str(tmp_path),
        "images": ["ä.png"],
        "question": "What?",
        "answer": "ä.png: What?",
    }
    assert calls.assistants[0].device == "cpu"


@pytest.mark.parametrize("call", [("ask", "a.png", "What?"), ("describe", "a.png")])
def test_smaller_weights_are_asked_for(run: Run, calls: Any, call: tuple[str, ...]) -> None:
    assert run(*call, "--quantize", "int4")[0] == 0
    assert calls.assistants[0].quantize == "int4"


def test_eval_hands_on_smaller_weights(run: Run, calls: Any) -> None:
    assert run("eval", "drawn", "--quantize", "int8")[0] == 0
    assert calls.of["eval_drawn"][1]["quantize"] == "int8"


def test_ask_streams_to_a_terminal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert run("ask", "a.png", "What?")[1] == "streamed What?\n"


def test_chat_keeps_pictures_until_the_next_question(
    run: Run, calls: Any, photos: Path, monkeypatch: pytest.MonkeyPatch
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
    (assistant,) = calls.assistants
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
    run: Run, calls: Any, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = iter([f"/image {photos / 'a.png'}", "what?", "and?"])

    def read(_prompt: str = "") -> str:
        for line in lines:
            return line
        raise EOFError

    monkeypatch.setattr("builtins.input", read)
    assert run("chat", "--quantize", "int8")[0] == 0
    assert calls.assistants[0].quantize == "int8"
    assert calls.assistants[0].said == [("what?", [photos / "a.png"]), ("and?", [])]


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


def test_train_hands_on_recipe_and_settings(run: Run, calls: Any, tmp_path: Path) -> None:
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


def test_eval_hands_on_what_to_measure(run: Run, calls: Any, tmp_path: Path) -> None:
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
            "quantize": None,
            "json_path": path,
            "gallery_path": None,
            "blind": None,
        },
    )


def test_eval_hands_on_a_blind_model(run: Run, calls: Any) -> None:
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


@pytest.mark.parametrize(
    ("named", "is_asked"),
    [
        ((), True),
        (("--answers", "a.jsonl"), False),
        (("--answers", "a.jsonl", "--model", "m"), True),
    ],
)
def test_eval_hands_on_benchmarks(
    run: Run, calls: Any, monkeypatch: pytest.MonkeyPatch, named: tuple[str, ...], is_asked: bool
) -> None:
    monkeypatch.setenv("LAPILLI_MODEL", "m")
    assert run("eval", "pope", "gqa", "--data", "sets", *named)[0] == 0
    names, told = calls.of["eval_benchmarks"]
    assert names == (["pope", "gqa"],)
    assert (told["data"], told["model"], told["is_asked"]) == (Path("sets"), "m", is_asked)


def test_eval_hands_on_photographs(run: Run, calls: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert run("eval", "photos", "--photos", "data", "--gallery", page)[0] == 0
    assert calls.of["eval_photos"] == (
        (None,),
        {
            "photos": Path("data"),
            "device": "auto",
            "quantize": None,
            "json_path": None,
            "gallery_path": page,
        },
    )


def test_data_make_hands_on_what_to_draw(run: Run, calls: Any) -> None:
    assert run("data", "make", "drawn", "out", "--pictures", 5, "--hard", 0, "--seed", 9)[0] == 0
    (data, out), _ = calls.of["make_drawn"]
    assert out == Path("out")
    assert (data["pictures"], data["hard"], data["seed"], data["photos"]) == (5, 0.0, 9, None)


def test_models_are_listed_as_a_table_and_as_json(run: Run) -> None:
    code, out, _ = run("models")
    assert code == 0
    assert [" ".join(line.split()) for line in out.splitlines()] == [
        "name parameters bf16 int8 int4 license here",
        "lapilli-tiny 11.8 M 23.7 MB 11.8 MB 5.92 MB Apache-2.0 yes",
        "llava-1.5-7b 7.06 B 14.1 GB 7.06 GB 3.53 GB Llama 2 no",
    ]
    rows = json.loads(run("models", "--json")[1])
    assert [(row["name"], row["parameters"], row["is_here"], row["folder"]) for row in rows] == [
        ("lapilli-tiny", 11_834_624, True, "tiny"), ("llava-1.5-7b", 7_063_000_000, False, None),
    ]  # fmt: skip
    assert rows[0]["memory_bytes"] == {"bf16": 23_669_248, "int8": 11_834_624, "int4": 5_917_312}


def test_models_fit_a_narrow_terminal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = run("models")[1].splitlines()
    assert len(lines) == 3
    assert max(map(len, lines)) <= 80


def test_a_model_that_is_here_is_shown_with_its_numbers(run: Run) -> None:
    lines = [line.split(maxsplit=1) for line in run("models", "show", "tiny")[1].splitlines()]
    shown = {label: value.strip() for label, value in lines}
    assert shown["parameters"] == "11.8 M"
    assert shown["disk"] == "23.7 MB in BF16"
    assert shown["memory"] == "23.7 MB in bf16, 11.8 MB in int8, 5.92 MB in int4"
    assert shown["picture"] == "576 features"
    assert shown["context"] == "4096 tokens"
    assert shown["vision.patch_size"] == "14"
    assert shown["decoder.num_kv_heads"] == "32"
    assert shown["projector"] == "mlp2x_gelu"
    row = json.loads(run("models", "show", "tiny", "--json")[1])
    assert row["spec"]["decoder"]["width"] == 4096
    assert (row["features_per_image"], row["stored_as"]) == (576, "BF16")


def test_a_model_that_is_not_here_is_shown_by_what_is_known(run: Run) -> None:
    out = run("models", "show", "llava-1.5-7b")[1]
    assert "llava-hf/llava-1.5-7b-hf" in out
    assert "no: --model downloads it" in out
    assert "CLIP ViT-L/14, 336 px" in out
    assert "decoder." not in out
    row = json.loads(run("models", "show", "llava-1.5-7b", "--json")[1])
    assert row["spec"] is None
    assert row["published"]["context"] == 4096
