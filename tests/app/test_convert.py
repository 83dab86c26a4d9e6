"""`lapilli convert`: what comes back, what goes along, and that a failure leaves nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, LlavaForConditionalGeneration

from lapilli.app import converting
from lapilli.checkpoints import gguf, native
from lapilli.checkpoints.loading import EMBEDDED, embedded_folder, load
from lapilli.model.llava import Llava
from lapilli.model.spec import DecoderSpec, LlavaSpec, VisionSpec
from lapilli.processor.images import ImageSettings
from lapilli.processor.processor import Processor, PromptSettings
from lapilli.processor.tokenizer import train_tokenizer

Run = Callable[..., tuple[int, str, str]]

needs_model = pytest.mark.skipif(
    not (embedded_folder() / "model.safetensors").exists(),
    reason=f"this checkout has no weights in {embedded_folder()}",
)
CARD = "# small\n\nLicence: MIT.\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small model folder of our own, in bf16."""
    tokenizer = train_tokenizer(["How many red circles are there?"], 300)
    vocab_size = tokenizer.get_vocab_size()
    vision = VisionSpec(16, 8, 32, 3, 2, 48)
    decoder = DecoderSpec(vocab_size, 32, 2, 4, 2, 8, 48, max_positions=64)
    model = Llava(LlavaSpec(vision, decoder, image_token_id=5)).to(torch.bfloat16)
    processor = Processor(
        tokenizer,
        ImageSettings(16, "pad", (0.5, 0.4, 0.3), (0.5, 0.2, 0.1)),
        PromptSettings(4, max_tokens=64),
        (embedded_folder() / "chat_template.jinja").read_text("utf-8"),
    )
    native.save(tmp_path / "small", model, processor, card=CARD)
    (tmp_path / "small" / "LICENSE").write_text("Do as you like.")
    return tmp_path / "small"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_model_comes_back_from_hf_byte_by_byte(run: Run, folder: Path, tmp_path: Path) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    assert run("convert", folder, there, "--to", "hf")[0] == 0
    assert run("convert", there, back, "--to", "native")[0] == 0
    assert contents(back) == contents(folder)
    assert {value.dtype for value in load_file(there / "model.safetensors").values()} == {
        torch.bfloat16
    }


def test_weights_come_back_from_the_original_layout_byte_by_byte(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    code, out, _ = run("convert", folder, there, "--to", "original")
    assert code == 0
    assert str(there / "clip_tower" / "model.safetensors") in out.splitlines()
    assert run("convert", there, back, "--to", "native")[0] == 0
    assert contents(back)["model.safetensors"] == contents(folder)["model.safetensors"]


def pickle_weights(folder: Path, *, num_files: int = 1) -> None:
    """Write a folder's weights again as older versions did."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    path.unlink()
    names = sorted(weights)
    for n in range(num_files):
        end = f"-{n + 1:05}-of-{num_files:05}" if num_files > 1 else ""
        shard = {name: weights[name] for name in names[n::num_files]}
        torch.save(shard, folder / f"pytorch_model{end}.bin")


@pytest.fixture
def pickled(run: Run, folder: Path, tmp_path: Path) -> Path:
    """A model of the original's layout, with its projector in a file of its own besides."""
    there = tmp_path / "pickled"
    run("convert", folder, there, "--to", "original")
    weights = load_file(there / "model.safetensors")
    projector = {name: value for name, value in weights.items() if "mm_projector" in name}
    torch.save(projector, there / "mm_projector.bin")
    pickle_weights(there, num_files=2)
    return there


def test_pickled_weights_are_read_where_they_are_allowed(
    run: Run, folder: Path, pickled: Path, tmp_path: Path
) -> None:
    back = tmp_path / "back"
    code, out, err = run("convert", pickled, back, "--to", "native")
    assert (code, out) == (1, "")
    assert err.endswith(f"run: lapilli convert {pickled} DST --to native --allow-pickle\n")
    tower = pickled / "clip_tower"
    pickle_weights(tower)
    before = sorted(tmp_path.rglob("*"))
    for number, more in enumerate([(), ("--vision-tower", tower)]):
        back = tmp_path / "back" / str(number)
        assert run("convert", pickled, back, "--to", "native", "--allow-pickle", *more)[0] == 0
        assert contents(back)["model.safetensors"] == contents(folder)["model.safetensors"]
    back = back.parent
    assert sorted(path for path in tmp_path.rglob("*") if back not in (path, *path.parents)) == (
        before
    )


class Harm:
    """What a pickle may hold."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("harm done",)


def test_a_pickle_that_holds_more_than_tensors_is_not_run(
    run: Run, pickled: Path, tmp_path: Path
) -> None:
    path = pickled / "pytorch_model-00001-of-00002.bin"
    for content in ({"lm_head.weight": Harm()}, {"lm_head.weight": 1}, [torch.zeros(3)]):
        torch.save(content, path)
        code, out, err = run("convert", pickled, tmp_path / "x", "--to", "native", "--allow-pickle")
        assert (code, out) == (1, "")
        assert str(path) in err and "harm done" not in err
        assert err.count("\n") == 2  # what is being read, and the error
        assert not (tmp_path / "x").exists()


def test_files_go_to_stdout_and_progress_to_stderr(run: Run, folder: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    code, out, err = run("convert", folder, made, "--to", "gguf", "--type", "bf16")
    assert code == 0
    assert out.splitlines() == [str(path) for path in sorted(made.iterdir())]
    assert {path.name for path in made.iterdir()} == {
        "LICENSE", "README.md", "mmproj-bf16.gguf", "model-bf16.gguf"
    }  # fmt: skip
    assert err.splitlines() == [
        f"reading {folder}", f"writing {made}", "writing model-bf16.gguf",
        "writing mmproj-bf16.gguf",
    ]  # fmt: skip


def test_the_card_gets_a_head_for_the_hub_and_loses_it_again(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    run("convert", folder, tmp_path / "hf", "--to", "hf")
    card = (tmp_path / "hf" / "README.md").read_text()
    assert card == f"---\npipeline_tag: image-text-to-text\n---\n\n{CARD}"
    other = "---\nlicense: mit\ntags: [x]\n---\n\n# theirs\n"
    (tmp_path / "hf" / "README.md").write_text(other)
    run("convert", tmp_path / "hf", tmp_path / "native", "--to", "native")
    assert (tmp_path / "native" / "MODEL_CARD.md").read_text() == other
    run("convert", tmp_path / "native", tmp_path / "again", "--to", "hf")
    assert (tmp_path / "again" / "README.md").read_text() == other


def test_an_empty_folder_is_filled_and_a_full_one_kept(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    made = tmp_path / "made"
    made.mkdir()
    assert run("convert", folder, made, "--to", "hf")[0] == 0
    before = contents(made)
    code, out, err = run("convert", folder, made, "--to", "native")
    assert (code, out) == (2, "")
    assert err == f"error: {made}: not empty; name a new folder\n"
    assert contents(made) == before


def test_a_failure_leaves_nothing(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(tmp_path.rglob("*"))

    def full(*_args: object, **_kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf, "_vision_tensors", full)
    code, out, err = run("convert", folder, tmp_path / "new" / "made", "--to", "gguf")
    assert (code, out) == (1, "")
    assert err.endswith("made: cannot be written (No space left on device)\n")
    assert sorted(path for path in tmp_path.rglob("*") if path.name != "new") == before


def test_an_unknown_model_is_one_line(run: Run, tmp_path: Path) -> None:
    code, out, err = run("convert", tmp_path / "gone", tmp_path / "made", "--to", "hf")
    assert (code, out) == (1, "")
    assert "neither a model folder nor a known name" in err
    assert not (tmp_path / "made").exists()


@needs_model
@torch.inference_mode()
def test_transformers_reads_the_embedded_model(tmp_path: Path) -> None:
    made = tmp_path / "tiny"
    converting.convert(EMBEDDED, made, "hf")
    assert (made / "README.md").read_text().startswith("---\nlicense: apache-2.0\n")
    theirs, report = LlavaForConditionalGeneration.from_pretrained(
        made, output_loading_info=True, dtype=torch.float32
    )
    assert not any(report.values()), report
    model, processor = load(EMBEDDED, device="cpu")
    picture = Image.linear_gradient("L").convert("RGB")
    conversation = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}
    ]
    ours = processor(conversation, images=[picture])
    their_processor = AutoProcessor.from_pretrained(made)
    prompt = their_processor.apply_chat_template(conversation, add_generation_prompt=True)
    inputs = their_processor(images=picture, text=prompt, return_tensors="pt")
    assert torch.equal(inputs["input_ids"], ours.input_ids)
    torch.testing.assert_close(inputs["pixel_values"], ours.pixel_values, atol=0.02, rtol=0)
    wanted = theirs(input_ids=ours.input_ids, pixel_values=ours.pixel_values).logits
    torch.testing.assert_close(model(**ours), wanted, atol=1e-3, rtol=0)


def write_adapter(folder: Path, base: str) -> None:
    """An adapter on one layer, as PEFT writes it."""
    start = "base_model.model.model.language_model.layers.0.mlp.up_proj"
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": base}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    weights = {
        f"{start}.lora_A.weight": torch.ones(2, 32),
        f"{start}.lora_B.weight": torch.ones(48, 2),
    }
    save_file(weights, folder / "adapter_model.safetensors")


@pytest.mark.parametrize("options", [[], ["--base", "small"]])
def test_an_adapter_is_merged_into_its_base(
    run: Run, folder: Path, tmp_path: Path, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_adapter(tmp_path / "adapter", "nowhere" if options else "small")
    made = tmp_path / "made"
    assert run("convert", "adapter", made, "--to", "native", *options)[0] == 0
    before, after = load_file(folder / "model.safetensors"), load_file(made / "model.safetensors")
    name = "language_model.layers.0.mlp.up_proj.weight"
    assert torch.equal(after.pop(name), (before.pop(name).float() + 4).bfloat16())
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert (made / "LICENSE").read_text() == "Do as you like."


def test_an_adapter_whose_base_is_not_here_is_one_line(run: Run, tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter", "nowhere/at-all")
    code, out, err = run("convert", tmp_path / "adapter", tmp_path / "made", "--to", "hf")
    assert (code, out) == (1, "")
    assert err.count("\n") <= 2
    assert "its base nowhere/at-all is not on this disk" in err
    assert not (tmp_path / "made").exists()
