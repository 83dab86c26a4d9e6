"""LLaVA-NeXT and LLaVA-OneVision in folders that `transformers` wrote, and in folders that it
reads: the same pictures, places, logits and answers."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from their_names import names_in_memory_of_4, names_in_memory_of_5, names_on_disk
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionProcessor,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)

from lapilli.checkpoints import hf, native
from lapilli.checkpoints.loading import load
from lapilli.engine.engine import Engine
from lapilli.errors import CheckpointError, ImageError, PromptError
from lapilli.inputs import Inputs
from lapilli.messages import Conversation, ImagePart, Message, Sampling, TextPart
from lapilli.model.llava import Llava
from lapilli.processor.processor import Processor
from lapilli.processor.tokenizer import Words
from lapilli.tiling import Tiling

SIDE, GRID, IMAGE = 30, 4, 5  # two pixels at the edges of a tile fill no patch
PLACES = GRID**2
PINPOINTS = [[30, 60], [60, 30], [60, 60], [90, 90], [90, 30], [30, 90]]
MAX_TILES = 4
"""Fewer than the largest grid has: its features are shrunk."""
CONTEXT = 2048

KINDS: dict[str, tuple[type, type]] = {
    "next": (LlavaNextConfig, LlavaNextForConditionalGeneration),
    "onevision": (LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration),
}
TOWERS = {"clip": CLIPVisionConfig, "siglip": SiglipVisionConfig}
DECODERS = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config}
MODELS = [
    "next, clip, llama",
    "next, clip, mistral",
    "next, siglip, qwen2",
    "onevision, siglip, qwen2, tied, 26 layers",
    "onevision, siglip, llama",
    "onevision, clip, mistral",
]
SCENES: dict[str, list[list[tuple[int, int]]]] = {
    # conversations, and the heights and widths of the pictures in each
    "square": [[(40, 40)]],
    "wide": [[(25, 70)]],
    "tall": [[(85, 26)]],
    "one pixel": [[(1, 1)]],
    "strip": [[(1, 1000)]],
    "standing strip": [[(999, 2)]],
    "larger than any grid": [[(333, 401)]],
    "no picture": [[]],
    "two pictures": [[(31, 77), (64, 48)]],
    "three pictures": [[(20, 20), (20, 90), (110, 176)]],
    "a batch with padding": [[(57, 91)], [], [(90, 91), (12, 13)], [(200, 31)]],
}


@dataclass
class Both:
    """A model of theirs, its folder, and what we make of it."""

    kind: str
    theirs: Any
    folder: Path
    ours: Llava
    processor: Processor


def make_config(name: str, **top: Any) -> Any:
    kind, tower, decoder, *tags = name.split(", ")
    config_class, _ = KINDS[kind]
    vision = TOWERS[tower](
        hidden_size=32, intermediate_size=48, num_attention_heads=2, image_size=SIDE, patch_size=7,
        num_hidden_layers=26 if "26 layers" in tags else 3,
    )  # fmt: skip
    text = DECODERS[decoder](
        vocab_size=284, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=CONTEXT,
        tie_word_embeddings="tied" in tags,
    )  # fmt: skip
    if kind == "onevision":
        top = {"vision_aspect_ratio": f"anyres_max_{MAX_TILES}", "video_token_index": 283} | top
    return config_class(
        vision_config=vision, text_config=text, image_token_index=IMAGE,
        image_grid_pinpoints=PINPOINTS,
        vision_feature_select_strategy="default" if tower == "clip" else "full", **top,
    )  # fmt: skip


def their_images(kind: str) -> Any:
    if kind == "next":
        return LlavaNextImageProcessorPil(
            size={"shortest_edge": SIDE},
            crop_size={"height": SIDE, "width": SIDE},
            image_grid_pinpoints=PINPOINTS,
        )
    return LlavaOnevisionImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, image_grid_pinpoints=PINPOINTS
    )


def write_processor(folder: Path, kind: str, processor: Processor) -> None:
    """Their files beside the weights: of NeXT as version 5 writes them, else as version 4 did."""
    words = PreTrainedTokenizerFast(
        tokenizer_object=processor.words.tokenizer, pad_token="<pad>", eos_token="<|end|>",
        padding_side="left", extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip
    if kind == "next":
        LlavaNextProcessor(
            their_images(kind), words, chat_template=processor.chat_template
        ).save_pretrained(folder)
        return
    words.save_pretrained(folder)
    their_images(kind).save_pretrained(folder)
    template = json.dumps({"chat_template": processor.chat_template})
    (folder / "chat_template.json").write_text(template)


@pytest.fixture(scope="module")
def make(processor: Processor, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Both]:
    made: dict[str, Both] = {}

    def build(name: str) -> Both:
        if name in made:
            return made[name]
        kind = name.split(", ")[0]
        torch.manual_seed(0)
        theirs = KINDS[kind][1](make_config(name)).eval()
        for key, parameter in theirs.named_parameters():
            # Small embeddings and strong layers: or else each token would be followed by itself.
            scale = 0.05 if "embed_tokens" in key else 0.25
            torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, scale)
        folder = tmp_path_factory.mktemp("model")
        theirs.save_pretrained(folder)
        write_processor(folder, kind, processor)
        made[name] = Both(kind, theirs, folder, *load(folder, device="cpu"))
        return made[name]

    return build


@pytest.fixture(params=MODELS)
def both(request: pytest.FixtureRequest, make: Callable[[str], Both]) -> Both:
    return make(request.param)


def noise(height: int, width: int) -> Image.Image:
    dice = np.random.default_rng(1000 * height + width)
    return Image.fromarray(dice.integers(0, 256, (height, width, 3), np.uint8))


def conversations(scene: str) -> list[Conversation]:
    return [
        (Message("user", (*(ImagePart(noise(*s)) for s in sizes), TextPart(f"How many {i}?"))),)
        for i, sizes in enumerate(SCENES[scene])
    ]


def their_inputs(both: Both, asked: list[Conversation], inputs: Inputs) -> dict[str, Any]:
    """Our words and their pictures."""
    nested = [[image for turn in c for image in turn.images] for c in asked]
    found: dict[str, Any] = {
        "input_ids": inputs.input_ids,
        "attention_mask": (inputs.groups >= 0).long(),
    }
    if any(nested):
        found |= their_images(both.kind)([row for row in nested if row], return_tensors="pt")
    return found


@torch.inference_mode()
@pytest.mark.parametrize("scene", SCENES)
def test_logits_and_pixels_equal_transformers(both: Both, scene: str) -> None:
    asked = conversations(scene)
    inputs = both.processor.batch(asked)
    theirs = their_inputs(both, asked, inputs)
    wanted = both.theirs(**theirs, position_ids=inputs.positions).logits
    assert wanted.std() > 0.1  # or equality would say nothing
    is_token = inputs.groups >= 0
    assert (both.ours(**inputs) - wanted)[is_token].abs().max() < 1e-4
    if "pixel_values" not in theirs:
        assert inputs.pixel_values is inputs.image_sizes is inputs.num_views is None
        return
    assert inputs.pixel_values is not None
    assert inputs.image_sizes is not None and inputs.num_views is not None
    assert inputs.image_sizes.tolist() == theirs["image_sizes"].tolist()
    parts = inputs.pixel_values.split(inputs.num_views.tolist())
    for part, padded in zip(parts, theirs["pixel_values"], strict=True):
        assert (part - padded[: len(part)]).abs().max() < 1e-6
        assert not padded[len(part) :].any()


class Spelled(Words):
    """Words whose text is their ids: two answers read alike only where they are alike."""

    def decode(self, ids: list[int]) -> str:
        return "".join(f"{token} " for token in ids)


def test_transformers_generates_the_answers_of_our_engine(both: Both) -> None:
    count = 20
    asked = conversations("a batch with padding")
    inputs = both.processor.batch(asked)
    made = both.theirs.generate(
        **their_inputs(both, asked, inputs),
        max_new_tokens=count, do_sample=False, eos_token_id=both.processor.end_id, pad_token_id=0,
    )[:, inputs.input_ids.shape[1] :].tolist()  # fmt: skip
    wanted = [list(takewhile(lambda token: token != both.processor.end_id, ids)) for ids in made]
    spelling = copy.copy(both.processor)
    spelling.words = Spelled(both.processor.words.tokenizer)
    told = [""] * len(asked)
    for piece in Engine(both.ours, spelling, max_batch=3).respond(asked, Sampling(count)):
        told[piece.index] += piece.text
    assert [[int(word) for word in text.split()] for text in told] == wanted
    assert len({token for ids in wanted for token in ids}) > 4  # or equality would say little


class WithoutVideos(LlavaOnevisionProcessor):
    """Their processor without its part for videos, which needs the package torchvision."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        return ["image_processor", "tokenizer"]


def their_processor(folder: Path, kind: str) -> Any:
    """Their processor as it comes for the folder, with the pictures of Pillow."""
    if find_spec("torchvision") is None and kind == "onevision":
        return WithoutVideos.from_pretrained(folder)
    theirs = AutoProcessor.from_pretrained(folder)
    try:
        theirs.image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    except ImportError:
        pytest.skip("this transformers makes such processors by torchvision alone")
    return theirs


@torch.inference_mode()
@pytest.mark.parametrize(
    "name", ["next, clip, llama", "onevision, siglip, llama", "onevision, clip, mistral"]
)
def test_what_we_write_gives_them_equal_inputs_and_logits_from_end_to_end(
    name: str, make: Callable[[str], Both], tmp_path: Path
) -> None:
    both = make(name)
    hf.save(tmp_path, both.ours, both.processor)
    processor = their_processor(tmp_path, both.kind)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    for scene in ("square", "wide", "one pixel", "strip", "larger than any grid", "two pictures"):
        (asked,) = conversations(scene)
        marks = [{"type": "image"}] * len(asked[0].images)
        messages = [{"role": "user", "content": [*marks, {"type": "text", "text": "How many 0?"}]}]
        text = processor.apply_chat_template(messages, add_generation_prompt=True)
        theirs = processor(text=text, images=[asked[0].images], return_tensors="pt")
        ours = both.processor.batch([asked])
        assert ours.input_ids.tolist() == theirs["input_ids"].tolist(), scene
        assert ours.pixel_values is not None and ours.num_views is not None
        rows = zip(theirs["pixel_values"], ours.num_views.tolist(), strict=True)
        shown = torch.cat([row[:count] for row, count in rows])
        assert (ours.pixel_values - shown).abs().max() < 1e-6, scene
        assert (both.ours(**ours) - model(**theirs).logits).abs().max() < 1e-4, scene


def test_a_folder_of_onevision_describes_videos_for_their_processor(
    make: Callable[[str], Both], tmp_path: Path
) -> None:
    """Without it their class takes what is said of pictures, tiles and all."""
    both = make("onevision, siglip, llama")
    hf.save(tmp_path, both.ours, both.processor)
    said = json.loads((tmp_path / "video_preprocessor_config.json").read_text())
    assert said["video_processor_type"] == "LlavaOnevisionVideoProcessor"
    assert said["size"] == {"height": SIDE, "width": SIDE}
    assert "image_grid_pinpoints" not in said
    if find_spec("torchvision") is not None:
        theirs = AutoProcessor.from_pretrained(tmp_path).video_processor
        assert theirs.size == {"height": SIDE, "width": SIDE}
        assert list(theirs.image_mean) == said["image_mean"]


def test_places_of_onevision_are_as_many_as_their_processor_keeps(
    make: Callable[[str], Both], tmp_path: Path
) -> None:
    both = make("onevision, siglip, llama")
    hf.save(tmp_path, both.ours, both.processor)
    # Their class needs a package for videos; its arithmetic does not.
    theirs = object.__new__(LlavaOnevisionProcessor)
    settings = json.loads((tmp_path / "processor_config.json").read_text())
    vars(theirs).update(settings, image_processor=their_images("onevision"))
    tiling = both.ours.spec.tiling
    assert tiling is not None
    assert tiling.num_whole_features == settings["num_image_tokens"] + 1
    for height in (1, 2, 7, 29, 30, 31, 64, 90, 400):
        for width in (1, 5, 30, 44, 61, 89, 123, 1000):
            wanted = theirs._get_number_of_features(height, width, SIDE, SIDE)
            assert tiling.num_features((height, width)) == wanted, (height, width)


@torch.inference_mode()
def test_transformers_reads_what_we_write_with_equal_logits(both: Both, tmp_path: Path) -> None:
    hf.save(tmp_path, both.ours, both.processor)
    theirs, report = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert type(theirs) is KINDS[both.kind][1]
    asked = conversations("two pictures")
    inputs = both.processor.batch(asked)
    wanted = theirs(**their_inputs(both, asked, inputs)).logits
    assert (both.ours(**inputs) - wanted).abs().max() < 1e-4


@pytest.mark.parametrize("layout", [hf, native], ids=["hf", "native"])
def test_what_we_write_comes_back_bit_by_bit(both: Both, layout: Any, tmp_path: Path) -> None:
    layout.save(tmp_path, both.ours, both.processor)
    again, its_processor = layout.load(tmp_path)
    assert again.spec == both.ours.spec
    for name, value in both.ours.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert its_processor.images == both.processor.images
    assert its_processor.prompt == both.processor.prompt


@pytest.mark.parametrize("rename", [names_in_memory_of_5, names_in_memory_of_4, names_on_disk])
@pytest.mark.parametrize("name", ["next, clip, llama", "onevision, siglip, llama"])
def test_we_read_the_names_of_every_version(
    name: str, rename: Any, make: Callable[[str], Both], tmp_path: Path
) -> None:
    both = make(name)
    hf.save(tmp_path, both.ours, both.processor)
    weights = rename(dict(both.theirs.state_dict()))
    assert ("image_newline" in weights) == (rename is names_on_disk)
    save_file(weights, tmp_path / "model.safetensors")
    again, _ = hf.load(tmp_path)
    for key, value in both.ours.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


# What is refused


@pytest.fixture
def folder(make: Callable[[str], Both], tmp_path: Path) -> Path:
    both = make("onevision, siglip, llama")
    hf.save(tmp_path / "model", both.ours, both.processor)
    return tmp_path / "model"


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"image_grid_pinpoints": 30}, "image_grid_pinpoints is 30; give a list"),
        ({"image_grid_pinpoints": ["30x60"]}, "image_grid_pinpoints is .*; give a list"),
        ({"image_grid_pinpoints": []}, "image_grid_pinpoints: grids is empty"),
        ({"image_grid_pinpoints": [[30, 61]]}, r"resolution \[30, 61\]; .*multiples of 30 pixels"),
        ({"image_grid_pinpoints": [[30, 30, 30]]}, r"resolution \[30, 30, 30\]"),
        ({"image_grid_pinpoints": [[30, None]]}, r"resolution \[30, None\]"),
        ({"image_grid_pinpoints": [[30000, 30000]]}, "a grid of 1000000 tiles; give 256 or fewer"),
        ({"image_grid_pinpoints": [[30, 60]]}, "image_grid_pinpoints are not those of config"),
        ({"vision_aspect_ratio": "pad"}, "vision_aspect_ratio is 'pad'; supported is anyres_max_"),
        ({"vision_aspect_ratio": None}, "vision_aspect_ratio is None"),
        ({"vision_aspect_ratio": "anyres_max_0"}, "vision_aspect_ratio is 'anyres_max_0'"),
    ],
)
def test_tilings_that_are_not_supported_are_named(
    folder: Path, values: dict[str, Any], reason: str
) -> None:
    change(folder / "config.json", **values)
    with pytest.raises(CheckpointError, match=rf"config\.json: .*{reason}") as caught:
        hf.load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [torch.zeros(3), None])
def test_a_newline_that_does_not_fit_is_named(folder: Path, value: Tensor | None) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["image_newline"]
    if value is not None:
        weights["image_newline"] = value
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"image_newline is (\(3,\), not \(32,\)|missing)"):
        hf.load(folder)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"parity": "original"}, "tiling with parity 'original'"),
        ({"max_tiles": None}, "between LLaVA-NeXT and LLaVA-OneVision"),
        ({"tiles_several": True}, "between LLaVA-NeXT and LLaVA-OneVision"),
    ],
)
def test_tilings_that_have_no_form_there_are_refused(
    make: Callable[[str], Both], values: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    both = make("onevision, siglip, llama")
    assert isinstance(both.ours.spec.tiling, Tiling)
    spec = replace(both.ours.spec, tiling=replace(both.ours.spec.tiling, **values))
    with pytest.raises(CheckpointError, match=reason):
        hf.save(tmp_path / "other", Llava(spec), both.processor)
    assert not (tmp_path / "other").exists()


def test_a_processor_that_cuts_otherwise_than_the_model_is_refused(
    make: Callable[[str], Both], tmp_path: Path
) -> None:
    both = make("next, clip, llama")
    native.save(tmp_path, both.ours, both.processor)
    settings = json.loads((tmp_path / "processor.json").read_text())
    settings["images"]["tiling"]["grids"].reverse()
    (tmp_path / "processor.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=r"images\.tiling is .*, the model in config\.json"):
        native.load(tmp_path)


def test_views_that_do_not_fit_the_sizes_are_refused(make: Callable[[str], Both]) -> None:
    both = make("next, clip, llama")
    inputs = both.processor.batch(conversations("two pictures"))
    assert inputs.pixel_values is not None and inputs.image_sizes is not None
    assert inputs.num_views is not None
    for wrong, reason in (
        (replace(inputs, pixel_values=inputs.pixel_values[1:]), "views, counted as"),
        (
            replace(inputs, image_sizes=torch.full_like(inputs.image_sizes, 5)),
            "do not show pictures",
        ),
        (replace(inputs, num_views=inputs.num_views[:1]), "do not show pictures"),
        (replace(inputs, num_views=None), "Give image_sizes and num_views"),
        (replace(inputs, pixel_values=None), "picture places in the prompt, 0 picture features"),
    ):
        with pytest.raises(PromptError, match=reason):
            both.ours(**wrong)


def test_a_picture_that_cannot_be_read_is_named_before_any_answer(
    make: Callable[[str], Both],
) -> None:
    both = make("next, clip, llama")
    asked = (Message("user", (ImagePart("nowhere.png"), TextPart("What?"))),)
    with pytest.raises(ImageError, match=r"nowhere\.png: no such file"):
        Engine(both.ours, both.processor).respond([asked])
