"""Folders in the layout of the original code: what they hold, read by us and by `transformers`."""

from __future__ import annotations

import copy
import json
import sys
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
from originals import (
    GRID,
    PINPOINTS,
    PLACE,
    SIDE,
    VOCAB,
    Original,
    make_original,
    train_sentencepiece,
    write_words,
)
from PIL import Image
from safetensors.torch import load_file, save_file

from lapilli.checkpoints import hf, hub, native, original
from lapilli.checkpoints.loading import layout_of, load, read_spec
from lapilli.checkpoints.towers import PUBLISHED_TOWERS, NamedTower
from lapilli.engine.engine import Engine
from lapilli.errors import CheckpointError, ConfigError
from lapilli.inputs import Inputs
from lapilli.messages import Conversation, ImagePart, Message, Sampling, TextPart
from lapilli.processor.processor import Processor
from lapilli.processor.tokenizer import Words

MODELS = {
    # parts, and whether pictures are cut and the tower's weights lie inside
    "clip, llama": (False, False),
    "clip, llama, linear": (False, True),
    "siglip, qwen2": (False, False),
    "siglip, qwen2, tied": (True, True),
    "clip, mistral": (True, True),
}


def noise(height: int, width: int) -> Image.Image:
    dice = np.random.default_rng(1000 * height + width)
    return Image.fromarray(dice.integers(0, 256, (height, width, 3), np.uint8))


def ask(*sizes: tuple[int, int]) -> Conversation:
    pictures = [ImagePart(noise(*size)) for size in sizes]
    return (Message("user", (*pictures, TextPart("How many red circles are there?"))),)


@pytest.fixture(params=MODELS)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Original:
    is_cut, is_inside = MODELS[request.param]
    return make_original(tmp_path, request.param, is_cut=is_cut, is_inside=is_inside)


def their_inputs(processor: Processor, inputs: Inputs) -> dict[str, Any]:
    """The same pictures, and words with a place that their model has an embedding for."""
    is_place = inputs.input_ids == processor.image_token_id
    assert not (inputs.input_ids == PLACE).any()
    found: dict[str, Any] = {
        "input_ids": inputs.input_ids.masked_fill(is_place, PLACE),
        "pixel_values": inputs.pixel_values,
    }
    if inputs.num_views is not None and inputs.pixel_values is not None:
        parts = inputs.pixel_values.split(inputs.num_views.tolist())
        padded = torch.zeros(len(parts), max(map(len, parts)), 3, SIDE, SIDE)
        for row, part in zip(padded, parts, strict=True):
            row[: len(part)] = part
        found |= {"pixel_values": padded, "image_sizes": inputs.image_sizes}
    return found


class Spelled(Words):
    """Words whose text is their ids: two answers read alike only where they are alike."""

    def decode(self, ids: list[int]) -> str:
        return "".join(f"{token} " for token in ids)


def test_logits_and_greedy_answers_equal_transformers(made: Original) -> None:
    model, processor = load(made.folder, device="cpu")
    for asked in (ask((40, 75)), ask((85, 26), (31, 30))):
        inputs = processor.batch([asked])
        theirs = their_inputs(processor, inputs)
        with torch.inference_mode():
            wanted = made.theirs(**theirs).logits
            assert wanted.std() > 0.1  # or equality would say nothing
            assert (model(**inputs) - wanted).abs().max() < 1e-4
    ids = made.theirs.generate(
        **theirs, max_new_tokens=20, do_sample=False, eos_token_id=processor.end_id, pad_token_id=0
    )[0, inputs.input_ids.shape[1] :].tolist()
    spelling = copy.copy(processor)
    spelling.words = Spelled(processor.words.tokenizer)
    told = "".join(p.text for p in Engine(model, spelling).respond([asked], Sampling(20)))
    wanted_ids = list(takewhile(lambda token: token != processor.end_id, ids))
    assert [int(word) for word in told.split()] == wanted_ids
    assert len(set(wanted_ids)) > 2  # or equality would say little


def test_the_layout_is_known_by_what_config_says(made: Original, tmp_path: Path) -> None:
    assert layout_of(made.folder).name == "original"
    made.rewrite(model_type="llava")  # as the first versions wrote it
    assert layout_of(made.folder).name == "original"
    made.rewrite(architectures=["LlamaForCausalLM"], mm_vision_tower=None)
    assert layout_of(made.folder).name == "hf"


# Words


def original_ids(folder: Path, prompt: str, image_id: int) -> list[int]:
    """What the original makes of a prompt: its stretches between pictures, each tokenized as a
    text, with "</s>" read as a token."""
    words = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    ids: list[int] = [words.bos_id()]
    for number, chunk in enumerate(prompt.split("<image>")):
        ids += [image_id] * bool(number)
        for index, stretch in enumerate(chunk.split("</s>")):
            ids += [words.eos_id()] * bool(index)
            ids += words.encode(stretch) if stretch else []
    return ids


def test_words_of_sentencepiece_have_the_ids_of_the_original(tmp_path: Path) -> None:
    made = make_original(tmp_path, "clip, llama")
    processor = load(made.folder, device="cpu")[1]
    assert processor.prompt.template == "vicuna_v1"
    assert processor.image_token_id == VOCAB
    asked = (
        *ask((30, 30)),
        Message("assistant", (TextPart("two red\ncircles"),)),
        Message("user", (TextPart("What is this? é日"),)),
    )
    system = (
        "A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the user's questions."
    )
    question = "How many red circles are there?"
    prompt = (
        f"{system} USER: <image>\n{question} ASSISTANT: two red\ncircles</s>"
        "USER: What is this? é日 ASSISTANT:"
    )
    wanted = original_ids(made.folder, prompt, VOCAB)
    ids = processor.encode(asked, is_answering=True).ids
    squeezed = [token for n, token in enumerate(ids) if token != VOCAB or ids[n - 1] != VOCAB]
    assert ids.count(VOCAB) == GRID**2
    assert squeezed == wanted


def test_a_stretch_behind_an_end_begins_with_a_space_only_in_the_legacy_way(
    tmp_path: Path,
) -> None:
    made = make_original(tmp_path, "clip, llama")
    tokens = {}
    for legacy in (True, False):
        write_words(made.folder, "llama", legacy=legacy)
        words = load(made.folder, device="cpu")[1].words
        ids = words.encode("yes</s>USER", with_specials=True)
        tokens[legacy] = [words.tokenizer.id_to_token(token) for token in ids]
    space = "\N{LOWER ONE EIGHTH BLOCK}"
    for legacy, stretches in tokens.items():
        text = "".join(stretches)
        assert text == f"{space}yes</s>{space if legacy else ''}USER"


@pytest.mark.parametrize(
    ("name", "added", "template"),
    [
        ("clip, llama", [], "vicuna_v1"),
        ("clip, llama", ["<|im_start|>", "<|im_end|>"], "chatml_direct"),
        ("clip, llama", ["<|start_header_id|>", "<|eot_id|>"], "llama_3"),
        ("clip, mistral", [], "mistral_instruct"),
        ("clip, qwen2", [], "qwen"),
    ],
)
def test_the_template_follows_the_family_and_its_tokens(
    name: str, added: list[str], template: str, tmp_path: Path
) -> None:
    made = make_original(tmp_path, name)
    if added:
        tokenizer = load(made.folder, device="cpu")[1].words.tokenizer
        tokenizer.add_special_tokens(added)
        tokenizer.save(str(made.folder / "tokenizer.json"))
    assert load(made.folder, device="cpu")[1].prompt.template == template


def test_marks_of_turns_that_are_typed_stay_text(tmp_path: Path) -> None:
    made = make_original(tmp_path, "clip, llama")
    train_sentencepiece(made.folder / "tokenizer.model", "<|im_start|>", "<|im_end|>")
    processor = load(made.folder, device="cpu")[1]
    assert processor.prompt.template == "chatml_direct"
    start, end = map(processor.words.id, ("<|im_start|>", "<|im_end|>"))
    for text, count in (("yes", 3), ("<|im_end|><|im_start|>system", 3)):
        ids = processor.encode((Message("user", (TextPart(text),)),), is_answering=True).ids
        assert (ids.count(start), ids.count(end)) == (count, count - 1)
    assert processor.decode([start, *processor.words.encode("yes", with_specials=False)]) == "yes"


def test_a_chat_template_wins_that_knows_of_pictures(tmp_path: Path) -> None:
    made = make_original(tmp_path, "clip, llama")
    assert load(made.folder, device="cpu")[1].chat_template is None
    source = "{% for m in messages %}<image>{{ m['content'][1]['text'] }}{% endfor %}"
    (made.folder / "chat_template.jinja").write_text(source)
    assert load(made.folder, device="cpu")[1].chat_template == source


# Towers


def test_a_tower_elsewhere_is_named_by_the_user(tmp_path: Path) -> None:
    made = make_original(tmp_path, "clip, llama", is_inside=False, mm_vision_tower="gone/tower")
    with pytest.raises(CheckpointError) as caught:
        load(made.folder, device="cpu")
    assert "its vision tower 'gone/tower' is not on this disk" in str(caught.value)
    assert "--vision-tower" in str(caught.value)
    model, _ = load(made.folder, device="cpu", vision_tower=tmp_path / "tower")
    theirs = made.theirs.model.vision_tower.state_dict()
    name = next(name for name in theirs if name.endswith("pre_layrnorm.weight"))
    assert torch.equal(model.vision_tower.pre_norm.weight, theirs[name])


def test_a_tower_in_the_cache_of_the_hub_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_original(tmp_path, "clip, llama", is_inside=False, mm_vision_tower="some/tower")
    cached = {"some/tower": tmp_path / "tower"}
    monkeypatch.setattr(hub, "cached_tower", lambda name: cached.get(name.repository))
    monkeypatch.setattr(hub, "_download", lambda name: pytest.fail("nobody asked for it"))
    load(made.folder, device="cpu")


def test_a_published_tower_inside_needs_no_second_folder(tmp_path: Path) -> None:
    made = make_original(
        tmp_path, "clip, llama",
        mm_vision_tower="openai/clip-vit-large-patch14-336", mm_hidden_size=1024,
    )  # fmt: skip
    spec = read_spec(made.folder)
    assert spec.vision.image_size == 336
    assert spec.vision.num_features == 576
    assert spec.vision.feature_layer == -2
    with pytest.raises(CheckpointError, match=r"patch_embedding.weight is \(32, 3, 7, 7\), not"):
        load(made.folder, device="cpu")


def test_a_published_tower_is_written_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_original(tmp_path, "siglip, qwen2", is_inside=False)
    model, processor = load(made.folder, device="cpu")
    tower = replace(model.spec.vision, num_layers=4)
    images = replace(processor.images, mode="squash")
    monkeypatch.setitem(PUBLISHED_TOWERS, "some/tower", NamedTower(tower, images))
    original.save(tmp_path / "written", model, processor)
    assert all(path.is_file() for path in (tmp_path / "written").iterdir())
    assert json.loads((tmp_path / "written/config.json").read_text())["mm_vision_tower"] == (
        "some/tower"
    )
    again, _ = load(tmp_path / "written", device="cpu")
    assert again.spec == model.spec
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_weights_inside_go_before_the_tower_that_is_named(tmp_path: Path) -> None:
    made = make_original(tmp_path, "clip, llama")
    other = make_original(tmp_path / "other", "clip, llama", is_inside=False)
    path = other.folder.parent / "tower" / "model.safetensors"
    save_file({name: value + 1 for name, value in load_file(path).items()}, path, {"format": "pt"})
    alone, _ = load(made.folder, device="cpu")
    named, _ = load(made.folder, device="cpu", vision_tower=path.parent)
    for name, value in alone.state_dict().items():
        assert torch.equal(value, named.state_dict()[name])


def test_other_layouts_take_no_tower(tmp_path: Path) -> None:
    made = make_original(tmp_path, "clip, llama")
    native.save(tmp_path / "own", *load(made.folder, device="cpu"))
    with pytest.raises(CheckpointError, match="holds its vision tower; leave out vision_tower"):
        load(tmp_path / "own", device="cpu", vision_tower=tmp_path / "tower")


# Pictures: whose way


def test_square_and_pad_are_the_two_ways_of_version_1_5(tmp_path: Path) -> None:
    made = make_original(tmp_path, "clip, llama")
    images = load(made.folder, device="cpu")[1].images
    assert images.mode == "pad"
    assert [int(value * 255) for value in images.mean] == [122, 116, 104]
    assert load(made.folder, device="cpu", parity="hf")[1].images.mode == "crop"
    for aspect in ("square", None):
        made.rewrite(image_aspect_ratio=aspect)
        assert load(made.folder, device="cpu")[1].images.mode == "crop"


def test_hugging_face_folders_pad_in_the_original_way(tmp_path: Path) -> None:
    made = make_original(tmp_path, "clip, llama", image_aspect_ratio="square")
    hf.save(tmp_path / "hf", *load(made.folder, device="cpu"))
    assert load(tmp_path / "hf", device="cpu")[1].images.mode == "crop"
    assert load(tmp_path / "hf", device="cpu", parity="hf")[1].images.mode == "crop"
    assert load(tmp_path / "hf", device="cpu", parity="original")[1].images.mode == "pad"


def test_grids_are_read_and_rounded_as_parity_says(tmp_path: Path) -> None:
    pinpoints = [[30, 60], [60, 30], [60, 60]]  # as published; who reads them takes them his way
    made = make_original(tmp_path, "clip, llama", is_cut=True, image_grid_pinpoints=pinpoints)
    tilings = {}
    for parity in ("original", "hf"):
        model, processor = load(made.folder, device="cpu", parity=parity)  # type: ignore[arg-type]
        assert model.spec.tiling == processor.images.tiling
        assert processor.images.tiling is not None
        tilings[parity] = processor.images.tiling
    assert tilings["original"].grid((20, 20)) == (2, 1)
    assert tilings["hf"].grid((20, 20)) == (1, 2)
    assert [tilings[parity].parity for parity in tilings] == ["original", "hf"]
    assert load(made.folder, device="cpu")[0].spec.tiling == tilings["original"]


@pytest.mark.parametrize(
    ("written", "grids"),
    [
        ("(1x1),...,(2x3)", [(1, 1), (2, 1), (3, 1), (1, 2), (2, 2), (3, 2)]),
        ("[(30, 60), (60, 30)]", [(2, 1), (1, 2)]),
        ([[30, 60], [60, 30]], [(2, 1), (1, 2)]),
    ],
)
def test_every_form_of_resolutions_is_read(
    written: Any, grids: list[tuple[int, int]], tmp_path: Path
) -> None:
    made = make_original(
        tmp_path, "clip, qwen2", is_cut=True,
        image_grid_pinpoints=written, image_aspect_ratio="anyres_max_9",
    )  # fmt: skip
    tiling = read_spec(made.folder).tiling
    assert tiling is not None
    assert (list(tiling.grids), tiling.max_tiles, tiling.tiles_several) == (grids, 9, False)


def test_unknown_parity_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="parity 'theirs' is unknown; give hf or original"):
        load(tmp_path, parity="theirs")  # type: ignore[arg-type]


# What is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mm_projector_type": "mlp3x_gelu"}, "mm_projector_type is 'mlp3x_gelu'; supported is"),
        ({"mm_vision_select_feature": "cls_patch"}, "mm_vision_select_feature is 'cls_patch'"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end is True; supported is False"),
        ({"mm_use_im_patch_token": True}, "mm_use_im_patch_token is True; supported is False"),
        ({"image_aspect_ratio": "crop_split"}, "image_aspect_ratio is 'crop_split'"),
        ({"mm_patch_merge_type": "spatial_unpad"}, "mm_patch_merge_type is 'spatial_unpad'"),
        ({"architectures": ["LlavaMptForCausalLM"]}, "architectures is ['LlavaMptForCausalLM']"),
        ({"architectures": 3}, "architectures is 3; supported is LlavaLlamaForCausalLM or"),
        ({"architectures": [{}]}, "architectures is [{}]; supported is LlavaLlamaForCausalLM or"),
        ({"auto_map": {"AutoModel": "x.Y"}}, "auto_map names code to run"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is {'bits': 4}"),
        ({"mm_vision_tower": 7}, "mm_vision_tower is 7; give a folder or an id"),
        ({"mm_hidden_size": 33}, "mm_hidden_size is 33; the vision tower makes 32"),
        ({"mm_vision_select_layer": -9}, "mm_vision_select_layer: feature_layer -9 is none of"),
        ({"mm_vision_select_layer": "-2"}, "mm_vision_select_layer is '-2', where an integer"),
        ({"hidden_size": 16}, "is (330, 32), not (330, 16)"),
        ({"mm_projector_type": None}, "model.mm_projector.weight is missing"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_not_supported_is_named_in_one_line(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    made = make_original(tmp_path, "clip, llama", **changes)
    with pytest.raises(CheckpointError) as caught:
        load(made.folder, device="cpu")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("written", [None, "(1x1)", "[(30, 31)]", "all", [30, 60], [[1, 2, 3]]])
def test_resolutions_that_are_none_are_refused(written: Any, tmp_path: Path) -> None:
    made = make_original(tmp_path, "clip, llama", is_cut=True, image_grid_pinpoints=written)
    with pytest.raises(CheckpointError, match="image_grid_pinpoints"):
        read_spec(made.folder)


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer_config.json"])
def test_a_missing_or_damaged_file_is_named(name: str, tmp_path: Path) -> None:
    made = make_original(tmp_path, "clip, llama")
    path = made.folder / name
    path.write_bytes(b"\xff" * 99)
    with pytest.raises(CheckpointError, match=str(path)):
        load(made.folder, device="cpu")
    path.unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer.*json: missing"):
        load(made.folder, device="cpu")


def test_the_packages_that_convert_words_are_asked_for_by_their_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_original(tmp_path, "clip, llama")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(CheckpointError, match=r"needs sentencepiece and .*lapilli\[original\]"):
        load(made.folder, device="cpu")


# What we write


@pytest.mark.parametrize("name", ["clip, llama, linear", "siglip, qwen2, tied", "clip, mistral"])
@pytest.mark.parametrize("is_cut", [False, True], ids=["whole", "cut"])
def test_a_model_goes_there_and_comes_back_bit_by_bit(
    name: str, is_cut: bool, tmp_path: Path
) -> None:
    made = make_original(tmp_path / "first", name, is_cut=is_cut)
    first, processor = load(made.folder, device="cpu", dtype="bf16")
    native.save(tmp_path / "native", first, processor)
    original.save(tmp_path / "second", *native.load(tmp_path / "native"))
    second, again = original.load(tmp_path / "second")
    assert second.spec == first.spec
    assert again.images == processor.images
    assert second.state_dict().keys() == first.state_dict().keys()
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key
    asked = ask((40, 75))
    assert again.encode(asked) == processor.encode(asked)


def test_a_hugging_face_model_goes_there_and_comes_back(tmp_path: Path) -> None:
    made = make_original(tmp_path, "clip, llama", is_cut=True)
    hf.save(tmp_path / "hf", *load(made.folder, device="cpu", parity="hf"))
    first, processor = hf.load(tmp_path / "hf")
    original.save(tmp_path / "original", first, processor)
    hf.save(tmp_path / "again", *load(tmp_path / "original", device="cpu", parity="hf"))
    second, _ = hf.load(tmp_path / "again")
    assert second.spec == first.spec
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("hf", "again")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_there_the_names_and_keys_are_the_originals(tmp_path: Path) -> None:
    made = make_original(tmp_path, "clip, llama", is_cut=True)
    original.save(tmp_path / "written", *load(made.folder, device="cpu"))
    before = load_file(made.folder / "model.safetensors")
    after = load_file(tmp_path / "written" / "model.safetensors")
    tower = load_file(tmp_path / "written" / "clip_tower" / "model.safetensors")
    after |= {f"model.vision_tower.vision_tower.{name}": value for name, value in tower.items()}
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    config = json.loads((tmp_path / "written" / "config.json").read_text())
    wanted = json.loads((made.folder / "config.json").read_text())
    for key in wanted:
        if key.startswith(("mm_", "image_", "arch", "model_type")) and key != "mm_vision_tower":
            assert config[key] == wanted[key], key
    assert config["image_grid_pinpoints"] == [[width, height] for height, width in PINPOINTS]


@torch.inference_mode()
def test_hugging_face_has_room_for_the_place_of_a_picture(tmp_path: Path) -> None:
    made = make_original(tmp_path, "clip, llama")
    model, processor = load(made.folder, device="cpu")
    assert processor.image_token_id >= model.spec.decoder.vocab_size
    hf.save(tmp_path / "hf", model, processor)
    grown, again = hf.load(tmp_path / "hf")
    assert grown.spec.decoder.vocab_size % 64 == 0
    assert again.image_token_id == processor.image_token_id < grown.spec.decoder.vocab_size
    inputs = processor.batch([ask((40, 75))])
    logits, wanted = grown(**inputs), model(**inputs)
    assert (logits[..., :VOCAB] - wanted).abs().max() < 1e-4
    assert torch.equal(logits.argmax(-1), wanted.argmax(-1))  # new rows are never the best
