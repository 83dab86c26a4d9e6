"""`lapilli train`: data made once, stages in order, and nothing lost to a kill."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

import lapilli
from lapilli.app import drawing, training
from lapilli.app.cli.main import main
from lapilli.app.training import train_recipes
from lapilli.config import load_toml
from lapilli.errors import ConfigError, DataError, LapilliError
from lapilli.runtime import held_alone
from lapilli.train.recipe import Recipe

VISION = """
[model.vision]
image_size = 32
patch_size = 8
width = 32
num_layers = 2
num_heads = 2
mlp_width = 64
activation = "gelu"
"""
STAGE = """
[stage]
kind = "{kind}"
steps = 3
batch = 2
learn = {{ {learn} = 3e-3 }}
[optimizer]
name = "muon"
[run]
dtype = "fp32"
evaluate_every = 100
save_every = 2
"""
SOURCE = '[[data.sources]]\npath = "{path}"\n'
RECIPES = {
    "1-vision": VISION
    + SOURCE.format(path="scenes.jsonl")
    + SOURCE.format(path="photos.jsonl")
    + 'images = "originals"\n'
    + STAGE.format(kind="vision", learn="vision_tower"),
    "2-language": '[model]\nvocab_size = 400\nwords_from = ["text.jsonl", "books.jsonl"]\n'
    + VISION
    + "[model.decoder]\nwidth = 32\nnum_layers = 1\nnum_heads = 2\nnum_kv_heads = 2\n"
    + "head_dim = 16\nmlp_width = 64\nis_tied = true\n"
    + SOURCE.format(path="text.jsonl")
    + SOURCE.format(path="books.jsonl")
    + STAGE.format(kind="conversation", learn="language_model"),
    "3-align": '[model]\nstart = "2-language"\nvision_tower = "1-vision"\n'
    + SOURCE.format(path="scenes.jsonl")
    + SOURCE.format(path="collages.jsonl")
    + STAGE.format(kind="conversation", learn="projector"),
    "4-instruct": '[model]\nstart = "3-align"\n'
    + SOURCE.format(path="scenes-questions.jsonl")
    + STAGE.format(kind="conversation", learn="language_model"),
}
DATA = "pictures = 20\ncollages = 10\ntexts = 20\nsize_px = 32\n"
DATA += 'photos = "no/photographs/here"\nbooks = "no/books/here"\n'
Main = Callable[..., tuple[int, str]]


def write_recipes(folder: Path) -> Path:
    folder.mkdir()
    (folder / "data.toml").write_text(DATA)
    for name, text in RECIPES.items():
        (folder / f"{name}.toml").write_text(text)
    return folder


@pytest.fixture
def recipes(tmp_path: Path) -> Path:
    return write_recipes(tmp_path / "recipes")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all stages were run, without photographs and books."""
    out = tmp_path_factory.mktemp("done")
    train_recipes(write_recipes(out / "recipes"), out=out / "runs")
    return out / "runs"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Main:
    def call(*arguments: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main(["train", *map(str, arguments)])
        return int(ended.value.code or 0), capsys.readouterr().err

    return call


def weights(runs: Path, stage: str) -> dict[str, torch.Tensor]:
    return load_file(runs / stage / "model/model.safetensors")


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_a_folder_of_recipes_leads_to_a_model_that_answers(done: Path) -> None:
    assistant = lapilli.MultimodalAssistant(done / "4-instruct/model", device="cpu")
    picture = done / "data/scenes/000000.png"
    assert isinstance(assistant.query(picture, "What is this?", max_new_tokens=4), str)


def test_without_photographs_and_books_drawings_alone_are_learned(done: Path) -> None:
    used = {
        stage: [str(s.path) for s in load_toml(done / stage / "recipe.toml", Recipe).data.sources]
        for stage in RECIPES
    }
    assert used == {
        "1-vision": ["scenes.jsonl"],
        "2-language": ["text.jsonl"],
        "3-align": ["scenes.jsonl"],
        "4-instruct": ["scenes-questions.jsonl"],
    }


def test_what_is_done_is_not_done_again(
    done: Path, recipes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(drawing, "_make_split", None)
    monkeypatch.setattr(training, "_run_here", None)
    train_recipes(recipes, out=done)
    said = capsys.readouterr().err
    assert [f"{name}: finished before" in said for name in RECIPES] == [True] * 4


def test_data_of_other_settings_are_refused_in_one_line(
    run: Main, done: Path, recipes: Path
) -> None:
    code, said = run(recipes, "--out", done, "--set", "drawn.pictures=21")
    assert code == 1
    assert said.splitlines()[-1] == (
        f"error: {done / 'data'}: holds data made with other settings (pictures 20, not 21); "
        "choose another folder"
    )


def test_settings_reach_every_stage_and_the_data(
    recipes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[str, Recipe]] = []
    made: list[drawing.DrawnData] = []

    def make(data: drawing.DrawnData, out: Path) -> None:
        made.append(data)
        out.mkdir(parents=True)
        for name in ("scenes.jsonl", "text.jsonl", "scenes-questions.jsonl"):
            (out / name).touch()

    monkeypatch.setattr(training, "make_drawn", make)
    monkeypatch.setattr(
        training, "_run_here", lambda file, recipe, _: ran.append((file.stem, recipe))
    )
    settings = ["stage.steps=7", "drawn.seed=9", "run.dtype=bf16"]
    train_recipes(recipes, out=tmp_path / "out", settings=settings)
    assert [name for name, _ in ran] == list(RECIPES)
    assert {(recipe.stage.steps, recipe.run.dtype) for _, recipe in ran} == {(7, "bf16")}
    assert [(data.seed, data.photos, data.books) for data in made] == [(9, None, None)]


def test_several_processes_get_the_settings_of_the_command(
    recipes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: Path
) -> None:
    shutil.copytree(done / "data", tmp_path / "out/data")
    calls: list[list[str]] = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, **_: calls.append(command))
    monkeypatch.setattr(training, "_wait", lambda _: 0)
    file = recipes / "1-vision.toml"
    train_recipes(file, out=tmp_path / "out", settings=["run.processes=2", "drawn.seed=1"])
    (command,) = calls
    assert command[command.index("--nproc-per-node") + 1] == "2"
    assert command[-6:] == [
        "train",
        str(file),
        "--out",
        str(tmp_path / "out"),
        "--set",
        "run.processes=2",
    ]


def test_a_training_process_that_failed_is_told(
    run: Main, recipes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: Path
) -> None:
    shutil.copytree(done / "data", tmp_path / "out/data")
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: None)
    monkeypatch.setattr(training, "_wait", lambda _: 3)
    call = (recipes / "1-vision.toml", "--out", tmp_path / "out", "--set", "run.processes=2")
    code, said = run(*call)
    assert code == 1
    assert "error: 1-vision: a training process ended with status 3;" in said


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["stage.stpes=5"], "1-vision.toml: unknown key stage.stpes; did you mean stage.steps?"),
        (["stage.steps=many"], "1-vision.toml: stage.steps must be an integer, not 'many'"),
        (["stage.steps"], "write it as key=value"),
        (["drawn.picture=5"], "data.toml: unknown key picture; did you mean pictures?"),
        (["run.save_every=0"], "1-vision.toml: run.save_every is 0; give 1 or more"),
        (["drawn.pictures=0", "drawn.texts=0"], "1-vision.toml: none of its sources were made"),
    ],
)
def test_a_wrong_setting_is_one_line(
    run: Main, recipes: Path, tmp_path: Path, settings: list[str], message: str
) -> None:
    options = [part for setting in settings for part in ("--set", setting)]
    code, said = run(recipes, "--out", tmp_path / "out", *options)
    assert code == 1
    last = said.splitlines()[-1]
    assert last.startswith("error: ") and message in last
    assert not any((tmp_path / "out" / name).exists() for name in RECIPES)


def test_a_fault_in_a_late_recipe_is_found_before_anything_is_done(
    recipes: Path, tmp_path: Path
) -> None:
    path = recipes / "4-instruct.toml"
    path.write_text(path.read_text().replace("[model]", "[model]\nstrat = 1"))
    with pytest.raises(
        ConfigError, match=r"4-instruct.toml: unknown key model.strat; did you mean"
    ):
        train_recipes(recipes, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_setting_of_data_that_nobody_makes_is_refused(recipes: Path, tmp_path: Path) -> None:
    (recipes / "data.toml").unlink()
    with pytest.raises(ConfigError, match=r"has no data.toml, so there is no drawn.KEY to set"):
        train_recipes(recipes, out=tmp_path / "out", settings=["drawn.pictures=5"])


def test_a_folder_without_recipes_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "gone.toml"):
        with pytest.raises(ConfigError, match="no recipe"):
            train_recipes(path, out=tmp_path / "out")


def test_records_that_are_missing_are_one_line(run: Main, recipes: Path, tmp_path: Path) -> None:
    (recipes / "data.toml").unlink()
    code, said = run(recipes / "1-vision.toml", "--out", tmp_path / "out")
    assert code == 1
    path = tmp_path / "out/data/scenes.jsonl"
    assert said.splitlines() == [f"error: {path}: cannot be read (No such file or directory)"]


def test_a_misspelt_source_is_not_taken_for_one_that_was_left_out(
    recipes: Path, done: Path, tmp_path: Path
) -> None:
    shutil.copytree(done / "data", tmp_path / "out/data")
    path = recipes / "1-vision.toml"
    path.write_text(path.read_text().replace("photos.jsonl", "fotos.jsonl"))
    with pytest.raises(DataError, match=r"data/fotos.jsonl: cannot be read"):
        train_recipes(path, out=tmp_path / "out")


def test_earlier_work_is_refused_where_none_is_wanted(done: Path, recipes: Path) -> None:
    with pytest.raises(ConfigError, match="holds earlier work; choose another --out"):
        train_recipes(recipes, out=done, resume=False)


# Kills


def test_a_folder_in_which_another_works_is_refused(recipes: Path, tmp_path: Path) -> None:
    refusal = pytest.raises(LapilliError, match=f"{tmp_path}: another process works in it")
    with held_alone(tmp_path), refusal:
        train_recipes(recipes, out=tmp_path)
    assert not (tmp_path / "data").exists()


def start(recipe: Path, out: Path, *settings: str) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "lapilli.app.cli.main",
        "train",
        str(recipe),
        "--out",
        str(out),
    ]
    for setting in settings:
        command += ["--set", setting]
    return subprocess.Popen(
        command, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As the processes of `start` have: other sums would round otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_killed_run_ends_with_the_weights_of_one_that_was_not(
    recipes: Path, done: Path, tmp_path: Path
) -> None:
    settings = ["stage.steps=100", "run.save_every=5"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for out in (whole, parts):
        shutil.copytree(done / "data", out / "data")
    recipe = recipes / "2-language.toml"
    with start(recipe, parts, *settings) as process:
        saved = parts / "2-language/checkpoints"
        until = time.monotonic() + 120
        while process.poll() is None and not list(saved.glob("step-*[05]")):
            assert time.monotonic() < until, "no checkpoint within two minutes"
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, "it was done before it could be killed"
    assert not (parts / "2-language/model").exists()
    for out in (whole, parts):
        train_recipes(recipe, out=out, settings=settings)
    assert same(weights(whole, "2-language"), weights(parts, "2-language"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGTERM")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_leaves_no_process_behind(
    recipes: Path, done: Path, tmp_path: Path, number: signal.Signals
) -> None:
    shutil.copytree(done / "data", tmp_path / "data")
    settings = ["run.processes=2", "stage.steps=100000", "run.save_every=5"]
    with start(recipes / "2-language.toml", tmp_path, *settings) as process:
        until = time.monotonic() + 120
        while not list((tmp_path / "2-language/checkpoints").glob("step-*[05]")):
            assert process.poll() is None and time.monotonic() < until, "no checkpoint"
            time.sleep(0.1)
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
    assert process.returncode in (1, 130)
    assert len(family) >= 3  # torchrun and its two workers
    assert psutil.wait_procs(family, timeout=10)[1] == []
