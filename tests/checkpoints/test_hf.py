"""Folders that `transformers` wrote, and folders that it reads."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    Qwen2Config,
    SiglipVisionConfig,
)

from lapilli.checkpoints import hf
from lapilli.checkpoints.hf_names import to_ours, to_theirs
from lapilli.checkpoints.hf_spec import spec_from_hf, spec_to_hf
from lapilli.errors import CheckpointError
from lapilli.messages import ImagePart, Message, TextPart
from lapilli.model.llava import Llava
from lapilli.model.spec import DecoderSpec, LlavaSpec, VisionSpec
from lapilli.processor.images import ImageSettings
from lapilli.processor.processor import Processor, PromptSettings
from lapilli.processor.tokenizer import train_tokenizer

TINY_TEMPLATE = files("lapilli").joinpath("assets/tiny/chat_template.jinja").read_text("utf-8")
TOKENIZER = train_tokenizer(["How many red circles are there?"], 300)
SIDE, PLACES, CONTEXT = 16, 4, 64
CLIP = VisionSpec(SIDE, 8, 32, 3, 2, 48)
SIGLIP = VisionSpec(
    SIDE, 8, 32, 3, 2, 48, "gelu_tanh", 1e-6,
    has_class_token=False, has_pre_norm=False, has_patch_bias=True, feature_layer=-1,
)  # fmt: skip
LLAMA = DecoderSpec(TOKENIZER.get_vocab_size(), 32, 2, 4, 2, 8, 48, max_positions=CONTEXT)
SPECS = {
    "clip, llama, tied": LlavaSpec(CLIP, replace(LLAMA, is_tied=True), image_token_id=5),
    "siglip, mistral": LlavaSpec(SIGLIP, replace(LLAMA, sliding_window=6), image_token_id=5),
    "clip, qwen2": LlavaSpec(CLIP, replace(LLAMA, has_qkv_bias=True), image_token_id=5),
    "siglip, qwen2 with a window": LlavaSpec(
        SIGLIP, replace(LLAMA, has_qkv_bias=True, sliding_window=6), image_token_id=5
    ),
    "clip, llama with scaled rope": LlavaSpec(
        replace(CLIP, activation="gelu"),
        replace(LLAMA, rope_theta=5e5, rope_scaling={"rope_type": "linear", "factor": 2.0}),
        image_token_id=5,
    ),
}
# As the checkpoint of LLaVA-1.5-7B in this layout says it, defaults left out.
LLAVA_7B: dict[str, Any] = {
    "architectures": ["LlavaForConditionalGeneration"],
    "image_token_index": 32000,
    "model_type": "llava",
    "projector_hidden_act": "gelu",
    "text_config": {
        "model_type": "llama",
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "vocab_size": 32064,
    },
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
    },
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
}


def make_model(spec: LlavaSpec) -> Llava:
    torch.manual_seed(0)
    model = Llava(spec).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.15)
    return model


def make_processor(mode: Any = "pad", **settings: Any) -> Processor:
    images = ImageSettings(SIDE, mode, (0.5, 0.4, 0.3), (0.5, 0.2, 0.1))
    prompt = PromptSettings(PLACES, max_tokens=CONTEXT, **settings)
    return Processor(TOKENIZER, images, prompt, TINY_TEMPLATE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    hf.save(tmp_path / "model", make_model(SPECS["clip, llama, tied"]), make_processor())
    return tmp_path / "model"


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 37, 3), np.uint8))


def question() -> tuple[Message, ...]:
    return (Message("user", (ImagePart(picture()), TextPart("How many?"))),)


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(read(path) | values))


def message(folder: Path) -> str:
    """What a load says, in one line."""
    with pytest.raises(CheckpointError) as caught:
        hf.load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_same_weights(left: Llava, right: Llava) -> None:
    assert left.state_dict().keys() == right.state_dict().keys()
    for name, value in left.state_dict().items():
        assert value.dtype == right.state_dict()[name].dtype, name
        assert torch.equal(value, right.state_dict()[name]), name


# What we write


@pytest.mark.parametrize("name", SPECS)
@torch.inference_mode()
def test_transformers_reads_what_we_write_with_equal_logits(name: str, tmp_path: Path) -> None:
    model, processor = make_model(SPECS[name]), make_processor()
    hf.save(tmp_path, model, processor)
    theirs, report = LlavaForConditionalGeneration.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(report.values()), report
    inputs = processor.batch([question()])
    wanted = theirs(input_ids=inputs.input_ids, pixel_values=inputs.pixel_values).logits
    torch.testing.assert_close(model(**inputs), wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("mode", ["pad", "crop", "squash"])
@pytest.mark.parametrize("name", ["clip, llama, tied", "siglip, mistral"])
def test_their_processor_reads_what_we_write_with_equal_inputs(
    mode: str, name: str, tmp_path: Path
) -> None:
    processor = make_processor(mode)
    hf.save(tmp_path, make_model(SPECS[name]), processor)
    theirs = AutoProcessor.from_pretrained(tmp_path)
    parts = [{"type": "image"}, {"type": "text", "text": "How many?"}]
    messages = [{"role": "user", "content": parts}]
    text = theirs.apply_chat_template(messages, add_generation_prompt=True)
    wanted = theirs(text=text, images=[picture()], return_tensors="pt")
    found = processor.batch([question()])
    assert found.input_ids.tolist() == wanted["input_ids"].tolist()
    torch.testing.assert_close(found.pixel_values, wanted["pixel_values"], atol=1e-6, rtol=0)


def test_their_tokenizer_gives_our_ids_and_knows_the_special_ones(folder: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(folder)
    text = "<|user|><image>\nHow many? é ★<|end|>"
    assert theirs(text).input_ids == make_processor().words.encode(text, with_specials=True)
    assert (theirs.eos_token, theirs.pad_token) == ("<|end|>", "<pad>")
    assert theirs.padding_side == "left"
    assert theirs.model_max_length == CONTEXT


def test_their_generation_stops_where_an_answer_ends(folder: Path) -> None:
    theirs = LlavaForConditionalGeneration.from_pretrained(folder)
    processor = make_processor()
    assert theirs.generation_config.eos_token_id == processor.end_id
    assert theirs.generation_config.pad_token_id == processor.words.id("<pad>")


def test_vicunas_turns_are_written_as_jinja(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["USER: ASSISTANT:"], 300)
    tokenizer.add_special_tokens(["</s>"])
    prompt = PromptSettings(PLACES, end_of_turn="</s>", max_tokens=CONTEXT)
    processor = Processor(tokenizer, make_processor().images, prompt)
    spec = replace(SPECS["clip, qwen2"], decoder=replace(LLAMA, vocab_size=400))
    hf.save(tmp_path, make_model(spec), processor)
    _, again = hf.load(tmp_path)
    turns = (*question(), Message("assistant", (TextPart("Two."),)), *question())
    system = (Message("system", (TextPart("Look."),)), *turns)
    two = (Message("user", (*question()[0].parts, ImagePart(picture()))),)
    for conversation in (turns, system, two):
        for is_asked in (True, False):
            wanted = processor.template.render(conversation, add_generation_prompt=is_asked)
            found = again.template.render(conversation, add_generation_prompt=is_asked)
            assert found == wanted


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (LlavaSpec(projector="linear"), "projector 'linear'"),
        (LlavaSpec(image_token_id=32064), "image token 32064 beyond 32064 embeddings"),
        (LlavaSpec(VisionSpec(has_patch_bias=True)), "between CLIP and SigLIP"),
    ],
)
def test_what_has_no_form_there_is_refused(spec: LlavaSpec, reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        spec_to_hf(spec)


def test_a_model_that_cannot_be_written_leaves_no_folder(tmp_path: Path) -> None:
    prompt = PromptSettings(PLACES, template="plain")
    processor = Processor(TOKENIZER, make_processor().images, prompt)
    with pytest.raises(CheckpointError, match="template 'plain'"):
        hf.save(tmp_path / "model", make_model(SPECS["clip, qwen2"]), processor)
    assert not (tmp_path / "model").exists()


# There and back


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SPECS)
def test_what_we_write_comes_back_bit_by_bit(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model, processor = make_model(SPECS[name]).to(dtype), make_processor("crop")
    hf.save(tmp_path, model, processor)
    again, its_processor = hf.load(tmp_path)
    assert again.spec == model.spec
    assert not again.training
    assert_same_weights(again, model)
    assert its_processor.images == processor.images
    assert its_processor.prompt == processor.prompt
    assert its_processor.chat_template == processor.chat_template


@pytest.mark.parametrize("name", SPECS)
def test_every_weight_has_one_name_there_and_back(name: str) -> None:
    ours = Llava(SPECS[name]).state_dict().keys()
    theirs = {to_theirs(weight) for weight in ours}
    assert len(theirs) == len(ours)
    assert {to_ours(weight) for weight in theirs} == set(ours)
    assert not theirs & ours - {"language_model.lm_head.weight"}


@pytest.mark.parametrize("spec", [*SPECS.values(), LlavaSpec()])
def test_an_architecture_comes_back_equal(spec: LlavaSpec) -> None:
    assert spec_from_hf(json.loads(json.dumps(spec_to_hf(spec)))) == spec


# What they write


def their_model(name: str, **text: Any) -> LlavaForConditionalGeneration:
    vision_class, text_class = {
        "clip, llama": (CLIPVisionConfig, LlamaConfig),
        "siglip, mistral": (SiglipVisionConfig, MistralConfig),
        "siglip, qwen2": (SiglipVisionConfig, Qwen2Config),
    }[name]
    torch.manual_seed(0)
    vision = vision_class(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2,
        image_size=SIDE, patch_size=8,
    )  # fmt: skip
    words = text_class(
        vocab_size=LLAMA.vocab_size, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=CONTEXT, **text,
    )  # fmt: skip
    strategy = "default" if vision_class is CLIPVisionConfig else "full"
    config = LlavaConfig(
        vision_config=vision, text_config=words, image_token_index=5,
        vision_feature_select_strategy=strategy,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.15)
    return model


def their_folder(path: Path, model: LlavaForConditionalGeneration, **options: Any) -> Path:
    """Their model, beside the files that LLaVA-1.5-7B has there."""
    model.save_pretrained(path, **options)
    TOKENIZER.save(str(path / "tokenizer.json"))
    words = {"eos_token": {"content": "<|end|>"}, "pad_token": "<pad>", "bos_token": "<|user|>"}
    (path / "tokenizer_config.json").write_text(json.dumps(words))
    (path / "chat_template.json").write_text(json.dumps({"chat_template": TINY_TEMPLATE}))
    pictures = {
        "crop_size": {"height": SIDE, "width": SIDE},
        "do_center_crop": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "CLIPImageProcessor",
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"shortest_edge": SIDE},
    }
    (path / "preprocessor_config.json").write_text(json.dumps(pictures))
    return path


def assert_same_logits(path: Path, theirs: LlavaForConditionalGeneration) -> None:
    model, processor = hf.load(path)
    inputs = processor.batch([question()])
    with torch.inference_mode():
        wanted = theirs(input_ids=inputs.input_ids, pixel_values=inputs.pixel_values).logits
        torch.testing.assert_close(model(**inputs), wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("is_tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("name", ["clip, llama", "siglip, mistral", "siglip, qwen2"])
def test_we_read_what_transformers_writes_with_equal_logits(
    name: str, is_tied: bool, tmp_path: Path
) -> None:
    theirs = their_model(name, tie_word_embeddings=is_tied)
    assert_same_logits(their_folder(tmp_path, theirs), theirs)


def test_we_read_weights_in_shards(tmp_path: Path) -> None:
    theirs = their_model("clip, llama")
    their_folder(tmp_path, theirs, max_shard_size="50KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert_same_logits(tmp_path, theirs)


def memory_names_of_4(names: dict[str, Tensor]) -> dict[str, Tensor]:
    tower = "model.vision_tower."
    return {name.replace(tower, tower + "vision_model."): value for name, value in names.items()}


def disk_names(names: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, value in memory_names_of_4(names).items():
        if name.startswith("model.language_model."):
            name = name.replace("model.language_model.", "language_model.model.")
        elif name.startswith("lm_head."):
            name = f"language_model.{name}"
        renamed[name.removeprefix("model.")] = value
    tower = "vision_tower.vision_model.embeddings.position_ids"
    layer = "language_model.model.layers.0.self_attn.rotary_emb.inv_freq"
    return renamed | {tower: torch.arange(5), layer: torch.zeros(4)}


@pytest.mark.parametrize("rename", [dict, memory_names_of_4, disk_names])
@pytest.mark.parametrize("name", ["clip, llama", "siglip, qwen2"])
def test_we_read_the_names_of_every_version(name: str, rename: Any, tmp_path: Path) -> None:
    theirs = their_model(name)
    their_folder(tmp_path, theirs)
    save_file(rename(dict(theirs.state_dict())), tmp_path / "model.safetensors")
    assert_same_logits(tmp_path, theirs)


def test_llava_1_5_is_our_own_default() -> None:
    assert spec_from_hf(LLAVA_7B) == LlavaSpec()


def test_rope_is_read_in_the_older_form_and_in_the_newer() -> None:
    scaling = {"rope_type": "linear", "factor": 4.0}
    older = {"rope_theta": 5e5, "rope_scaling": scaling}
    newer = {"rope_parameters": {"rope_theta": 5e5, **scaling}}
    specs = [
        spec_from_hf(LLAVA_7B | {"text_config": LLAVA_7B["text_config"] | form}).decoder
        for form in (older, newer)
    ]
    assert specs[0] == specs[1]
    assert (specs[0].rope_theta, specs[0].rope_scaling) == (5e5, scaling)


# What is refused


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "llava_next"),
        ("auto_map", {"AutoModel": "code.Model"}),
        ("projector_hidden_act", "relu"),
        ("multimodal_projector_bias", False),
        ("vision_feature_layer", [-2, -5]),
        ("vision_feature_layer", -26),
        ("vision_feature_select_strategy", "full"),
        ("vision_config", None),
        ("image_token_index", "32000"),
        ("vision_config.model_type", "vit"),
        ("vision_config.auto_map", {}),
        ("vision_config.hidden_act", "relu"),
        ("vision_config.num_channels", 1),
        ("vision_config.image_size", [336, 336]),
        ("vision_config.num_attention_heads", 7),
        ("text_config.model_type", "gpt2"),
        ("text_config.auto_map", {}),
        ("text_config.hidden_act", "gelu"),
        ("text_config.attention_bias", True),
        ("text_config.mlp_bias", True),
        ("text_config.hidden_size", True),
        ("text_config.num_attention_heads", 0),
        ("text_config.rope_scaling", {"type": "linear"}),
        ("text_config.rope_scaling", {"type": "yarn", "factor": 2.0}),
        ("text_config.rope_parameters", {"rope_type": "dynamic", "factor": 2.0}),
    ],
)
def test_what_is_not_supported_is_refused_by_its_key(key: str, value: Any) -> None:
    section, _, last = key.rpartition(".")
    config = LLAVA_7B | {section: LLAVA_7B[section] | {last: value}} if section else (
        LLAVA_7B | {key: value}
    )  # fmt: skip
    shown = {"vision_config.num_attention_heads": "heads"}.get(key, last)
    with pytest.raises(CheckpointError, match=rf"^config\.json: .*\b{shown}\b"):
        spec_from_hf(config)


def test_a_window_in_some_layers_alone_is_refused() -> None:
    text = {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 5}
    with pytest.raises(CheckpointError, match=r"text_config\.max_window_layers is 5"):
        spec_from_hf(LLAVA_7B | {"text_config": text})


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert f"{folder / name}: missing" in message(folder)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    their_folder(tmp_path, their_model("clip, llama"), max_shard_size="50KB")
    lost = sorted(tmp_path.glob("model-*.safetensors"))[1]
    lost.unlink()
    assert f"{lost}: missing" in message(tmp_path)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", ".."])
def test_an_index_does_not_lead_out_of_the_folder(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": name}}))
    assert "is no shard of this folder" in message(folder)


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "its weights are pickled" in message(folder)


def test_weights_that_do_not_fit_are_listed_by_their_names_there(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["multi_modal_projector.linear_1.bias"] = torch.zeros(3)
    del weights["vision_tower.vision_model.pre_layrnorm.weight"]
    weights["image_newline"] = torch.zeros(3)
    save_file(weights, path)
    text = message(folder)
    assert "multi_modal_projector.linear_1.bias is (3,), not (32,)" in text
    assert "vision_tower.vision_model.pre_layrnorm.weight is missing" in text
    assert "image_newline is unknown" in text


# Words, turns and pictures


def test_a_tokenizer_without_an_end_is_refused(folder: Path) -> None:
    change(folder / "tokenizer_config.json", eos_token=None)
    assert "tokenizer_config.json: names no eos_token" in message(folder)


def test_a_tokenizer_without_the_image_token_is_refused(folder: Path) -> None:
    vocab_size = TOKENIZER.get_vocab_size()
    change(folder / "config.json", image_token_index=vocab_size)
    assert f"has no token for the picture's id {vocab_size}" in message(folder)


@pytest.mark.parametrize(
    ("name", "template"),
    [
        ("chat_template.json", "from {{ messages }}"),
        ("processor_config.json", "from {{ messages }}"),
        ("tokenizer_config.json", "from {{ messages }}"),
        ("tokenizer_config.json", [{"name": "default", "template": "from {{ messages }}"}]),
    ],
)
def test_a_template_is_found_wherever_it_stands(folder: Path, name: str, template: Any) -> None:
    (folder / "chat_template.jinja").unlink()
    if not (folder / name).exists():
        (folder / name).write_text("{}")
    change(folder / name, chat_template=template)
    assert hf.load(folder)[1].chat_template == "from {{ messages }}"


def test_no_template_at_all_is_said(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    assert "chat_template.jinja: missing" in message(folder)


@pytest.mark.parametrize(
    ("words", "template", "wanted"),
    [
        ({"bos_token": "<|user|>", "add_bos_token": True}, "", "<|user|>"),
        ({"bos_token": "<|user|>", "add_bos_token": False}, "", ""),
        ({"bos_token": "<|user|>"}, "", ""),
        ({"bos_token": "<|user|>"}, "{{ bos_token }}", "<|user|>"),
        ({"add_bos_token": True}, "", ""),
    ],
)
def test_what_begins_a_text_is_what_tokenizer_or_template_say(
    folder: Path, words: dict[str, Any], template: str, wanted: str
) -> None:
    change(folder / "tokenizer_config.json", **words)
    (folder / "chat_template.jinja").write_text(template + TINY_TEMPLATE)
    assert hf.load(folder)[1].prompt.bos_token == wanted


@pytest.mark.parametrize(
    ("values", "mode"),
    [
        ({"size": SIDE, "do_center_crop": True, "crop_size": SIDE, "do_pad": False}, "crop"),
        ({"size": {"shortest_edge": SIDE}, "do_center_crop": True, "do_pad": False}, "crop"),
        ({"size": {"shortest_edge": SIDE}, "do_center_crop": True, "do_pad": True}, "pad"),
        ({"size": {"height": SIDE, "width": SIDE}, "do_pad": False}, "squash"),
    ],
)
def test_the_ways_to_a_square_are_told_apart(
    folder: Path, values: dict[str, Any], mode: str
) -> None:
    change(folder / "preprocessor_config.json", **values)
    assert hf.load(folder)[1].images.mode == mode


def test_pictures_are_also_described_in_one_file_for_all(folder: Path) -> None:
    wanted = hf.load(folder)[1].images
    path = folder / "preprocessor_config.json"
    change(folder / "processor_config.json", image_processor=read(path))
    path.unlink()
    assert hf.load(folder)[1].images == wanted


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"do_resize": False}, "do_resize is false"),
        ({"do_normalize": False}, "do_normalize is false"),
        ({"rescale_factor": 1.0}, r"rescale_factor is 1\.0"),
        ({"rescale_factor": "1/255"}, "rescale_factor is '1/255'"),
        ({"image_mean": None}, "image_mean is missing"),
        ({"image_std": [0.5, 0.5]}, "need three values"),
        ({"resample": 0}, "resample 0 is unknown"),
        ({"size": {"height": SIDE, "width": 2 * SIDE}}, "supported is one square"),
        ({"size": {"shortest_edge": SIDE}, "do_pad": False}, "do_center_crop is false"),
        ({"do_center_crop": True, "crop_size": 8}, "crop_size 8; supported is one square"),
        ({"size": {"height": 24, "width": 24}}, "pictures of 24 pixels"),
    ],
)
def test_pictures_prepared_otherwise_are_refused(
    folder: Path, values: dict[str, Any], reason: str
) -> None:
    change(folder / "preprocessor_config.json", **values)
    with pytest.raises(CheckpointError, match=rf"preprocessor_config\.json: .*{reason}"):
        hf.load(folder)
