"""Model folders of every kind of bad through `lapilli ask`: one line that says what, where, what to
do; and pictures that are hard on a model with tiles."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from lapilli.checkpoints import hf
from lapilli.model.llava import Llava
from lapilli.model.spec import DecoderSpec, LlavaSpec, VisionSpec
from lapilli.processor.images import ImageSettings
from lapilli.processor.processor import Processor, PromptSettings
from lapilli.processor.tokenizer import train_tokenizer
from lapilli.tiling import Tiling

Run = Callable[..., tuple[int, str, str]]

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
NORM = "language_model.model.norm.weight"
SIDE, CONTEXT = 16, 128
GRIDS = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
TILINGS = {
    "whole": None,
    "next": Tiling(SIDE, 2, GRIDS),
    "onevision": Tiling(SIDE, 2, GRIDS, max_tiles=2, tiles_several=False),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of model folders in the layout of Hugging Face, with random weights."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["What is in the picture?"], 300)
    source = files("lapilli").joinpath("assets/tiny/chat_template.jinja").read_text("utf-8")
    place = tmp_path_factory.mktemp("models")
    for name, tiling in TILINGS.items():
        images = ImageSettings(SIDE, "pad", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), tiling=tiling)
        processor = Processor(tokenizer, images, PromptSettings(4, max_tokens=CONTEXT), source)
        spec = LlavaSpec(
            VisionSpec(SIDE, 8, 16, 2, 2, 32),
            DecoderSpec(
                tokenizer.get_vocab_size(), 16, 2, 2, 2, 8, 32, max_positions=CONTEXT
            ),
            image_token_id=processor.image_token_id,
            tiling=tiling,
        )  # fmt: skip
        hf.save(place / name, Llava(spec), processor)
    return place


@pytest.fixture
def folder(models: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(models / "whole", tmp_path / "model"))


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.effect_noise((40, 30), 90).save(tmp_path / "good.png")
    return tmp_path / "good.png"


def into_shards(folder: Path) -> None:
    """Two shards and their index in the place of one file."""
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    shards: dict[str, str] = {}
    for n in (1, 2):
        names = sorted(weights)[n - 1 :: 2]
        save_file({name: weights[name] for name in names}, folder / f"model-{n}.safetensors")
        shards |= dict.fromkeys(names, f"model-{n}.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": shards}))


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# Each breaks a folder and returns what is said, after the folder's path.


def truncated(folder: Path) -> str:
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-10])
    return "/model.safetensors: damaged ("


def without_a_shard(folder: Path) -> str:
    into_shards(folder)
    (folder / "model-2.safetensors").unlink()
    return "/model-2.safetensors: missing; copy it beside config.json"


def with_an_index_of_more(folder: Path) -> str:
    into_shards(folder)
    weights = load_file(folder / "model-1.safetensors")
    name = sorted(weights)[0]
    del weights[name]
    save_file(weights, folder / "model-1.safetensors")
    assert name in json.loads((folder / INDEX).read_text())["weight_map"]
    return f": {name} is missing"


def of_wrong_shapes(folder: Path) -> str:
    weights = load_file(folder / WEIGHTS)
    save_file({name: torch.zeros(3, 5) for name in weights}, folder / WEIGHTS)
    return f": {min(weights)} is (3, 5), not "


def with_code(folder: Path) -> str:
    change(folder / "config.json", auto_map={"AutoModel": "code.Model"})
    return "/config.json: auto_map names code to run"


def with_code_of_a_part(folder: Path) -> str:
    text = json.loads((folder / "config.json").read_text())["text_config"]
    change(folder / "config.json", text_config=text | {"auto_map": {"AutoModel": "code.Model"}})
    return "/config.json: text_config.auto_map names code to run"


def of_an_unknown_kind(folder: Path) -> str:
    change(folder / "config.json", model_type="mllama")
    return "/config.json: model_type is 'mllama'; supported is 'llava' or"


def of_no_kind(folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text())
    del config["model_type"]
    (folder / "config.json").write_text(json.dumps(config))
    return "/config.json: model_type is ''; supported is 'llava' or"


def with_an_unknown_decoder(folder: Path) -> str:
    change(folder / "config.json", text_config={"model_type": "mamba"})
    return "/config.json: text_config.model_type is 'mamba'; supported is 'llama' or"


def without_a_tokenizer(folder: Path) -> str:
    (folder / "tokenizer.json").unlink()
    return "/tokenizer.json: missing"


BROKEN = [
    truncated, without_a_shard, with_an_index_of_more, of_wrong_shapes, with_code,
    with_code_of_a_part, of_an_unknown_kind, of_no_kind, with_an_unknown_decoder,
    without_a_tokenizer,
]  # fmt: skip


@pytest.mark.parametrize("damage", BROKEN, ids=lambda damage: damage.__name__)
def test_a_broken_folder_is_one_line(
    run: Run, folder: Path, picture: Path, damage: Callable[[Path], str]
) -> None:
    assert run("ask", picture, "What?", "--model", folder)[0] == 0
    said = damage(folder)
    code, out, err = run("ask", picture, "What?", "--model", folder)
    assert (code, out) == (1, "")
    assert err.startswith(f"error: {folder}{said}")
    assert err.count("\n") == 1


def test_all_wrong_shapes_are_listed_up_to_a_limit(run: Run, folder: Path, picture: Path) -> None:
    of_wrong_shapes(folder)
    num_weights = len(load_file(folder / WEIGHTS))
    err = run("ask", picture, "What?", "--model", folder)[2]
    assert err.count(" is (3, 5), not ") == 8
    assert err.endswith(f"; and {num_weights - 8} more faults\n")


@pytest.mark.parametrize(("marks", "written"), [("", 0), ("<image><image>", 2)])
def test_a_template_that_writes_other_pictures_than_are_given_is_one_line(
    run: Run, folder: Path, picture: Path, marks: str, written: int
) -> None:
    words = "{% for m in messages %}{{ m['content'] | map(attribute='text') | join }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(marks + words)
    code, out, err = run("ask", picture, "What?", "--model", folder)
    assert (code, out) == (1, "")
    assert err == (
        f"error: template jinja: writes {written} of 1 pictures. Use a template for pictures.\n"
    )


@pytest.mark.parametrize("name", ["next", "onevision"])
@pytest.mark.parametrize("size", [(1, 1), (1, 10_000), (10_000, 1)])
def test_a_picture_too_small_for_its_grid_is_answered(
    run: Run, models: Path, tmp_path: Path, name: str, size: tuple[int, int]
) -> None:
    Image.new("RGB", size, "red").save(tmp_path / "small.png")
    code, out, err = run("ask", tmp_path / "small.png", "What?", "--model", models / name)
    assert (code, err) == (0, "")
    assert out.endswith("\n")


def test_more_pictures_than_the_context_holds_are_one_line(
    run: Run, models: Path, picture: Path
) -> None:
    code, out, err = run("ask", *[picture] * 30, "What?", "--model", models / "next")
    assert (code, out) == (1, "")
    assert err.startswith("error: the conversation takes ")
    assert f"the model holds {CONTEXT}" in err
    assert err.count("\n") == 1


def test_weights_that_hold_nan_are_one_line_of_warning(folder: Path, picture: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    weights[NORM][3] = float("nan")
    save_file(weights, folder / WEIGHTS)
    # In a program of its own, as warnings are errors here.
    command = [sys.executable, "-m", "lapilli.app.cli.main", "ask", str(picture), "What?"]
    done = subprocess.run([*command, "-m", str(folder)], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr == f"warning: {folder / WEIGHTS}: {NORM} holds NaN; copy it again\n"
