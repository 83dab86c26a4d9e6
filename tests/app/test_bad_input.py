"""Bad input of every kind through the command line: one line that says what, where, what to do."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest
from PIL import Image

from lapilli.checkpoints import native
from lapilli.model.llava import Llava
from lapilli.model.spec import DecoderSpec, LlavaSpec, VisionSpec
from lapilli.processor.images import ImageSettings
from lapilli.processor.opening import MAX_BYTES
from lapilli.processor.processor import Processor, PromptSettings
from lapilli.processor.tokenizer import train_tokenizer

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with random weights."""
    processor = Processor(
        train_tokenizer(["What is in the picture?"], 300),
        ImageSettings(16, "squash", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        PromptSettings(features_per_image=4, max_tokens=64),
        files("lapilli").joinpath("assets/tiny/chat_template.jinja").read_text(),
    )
    spec = LlavaSpec(
        VisionSpec(16, 8, 16, 2, 2, 16, "gelu"),
        DecoderSpec(processor.words.tokenizer.get_vocab_size(), 16, 1, 2, 2, 8, 16),
        image_token_id=processor.image_token_id,
    )
    folder = tmp_path_factory.mktemp("model") / "model"
    native.save(folder, Llava(spec), processor)
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with a good picture, and one for each way of being bad."""
    noise = Image.effect_noise((64, 64), 90)
    noise.save(tmp_path / "good.jpg")
    content = (tmp_path / "good.jpg").read_bytes()
    (tmp_path / "truncated.jpg").write_bytes(content[: len(content) // 2])
    (tmp_path / "empty.png").touch()
    (tmp_path / "words.png").write_text("no picture")
    (tmp_path / "folder.png").mkdir()
    Image.new("1", (9000, 9000)).save(tmp_path / "bomb.png")
    (tmp_path / "large.jpg").write_bytes(content)
    os.truncate(tmp_path / "large.jpg", MAX_BYTES + 1)
    return tmp_path


def test_a_good_picture_is_answered(run: Run, model: Path, pictures: Path) -> None:
    code, out, err = run("ask", pictures / "good.jpg", "What?", "--model", model)
    assert (code, err) == (0, "")
    assert out.endswith("\n")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing.png", "no such file"),
        ("empty.png", "0 bytes"),
        ("words.png", "not a picture"),
        ("truncated.jpg", "damaged"),
        ("folder.png", "a folder, not a picture"),
        ("bomb.png", "more than the limit of 64,000,000"),
        ("large.jpg", "bytes, more than the limit"),
    ],
)
def test_a_bad_picture_is_one_line(
    run: Run, model: Path, pictures: Path, name: str, said: str
) -> None:
    path = pictures / name
    asked = run("ask", path, "What?", "--model", model)
    assert asked[:2] == (1, "")
    assert asked[2].startswith(f"error: {path}: ")
    assert said in asked[2]
    assert asked[2].count("\n") == 1
    described = run("describe", path if path.is_file() else pictures / "missing.png", "-m", model)
    assert described[:2] == (1, "")
    assert described[2].count("\n") == 1


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "processor.json"]
)
def test_a_model_folder_that_lacks_a_file_is_one_line(
    run: Run, model: Path, pictures: Path, name: str
) -> None:
    part = pictures / "part"
    shutil.copytree(model, part)
    (part / name).unlink()
    code, out, err = run("ask", pictures / "good.jpg", "What?", "--model", part)
    assert (code, out) == (1, "")
    assert err.startswith(f"error: {part / name}: missing")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ask", "good.jpg", "What?", "-m", "nobody"], "nobody: neither a model folder nor a"),
        (["ask", "good.jpg", "What?", "--device", "toaster"], "device 'toaster' is unknown"),
        (["train", "wrong.toml", "--out", "out"], "unknown key stage.step; did you mean"),
        (["train", "folder.png", "--out", "out"], "folder.png: no recipe"),
        (["train", "wrong.toml", "--out", "out", "--set", "steps"], "write it as key=value"),
        (["eval", "drawn", "-m", "nobody"], "nobody: neither a model folder nor a"),
        (["eval", "photos", "--photos", "folder.png"], "folder.png: no labelled photographs"),
        (["eval", "photos", "--photos", "missing"], "missing: no such folder"),
    ],
)
def test_other_bad_input_is_one_line(
    run: Run, model: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch,
    arguments: list[str], said: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(pictures)
    monkeypatch.setenv("LAPILLI_MODEL", str(model))
    Path("wrong.toml").write_text('[stage]\nkind = "vision"\nstep = 1\nbatch = 1\nlearn = {}\n')
    code, out, err = run(*arguments)
    assert (code, out) == (1, "")
    assert said in err
    assert err.count("\n") == 1
    assert not Path("out").exists()
