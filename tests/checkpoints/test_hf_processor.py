"""Words, turns and pictures of a Hugging Face folder: as their processor has them, or refused."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoProcessor, AutoTokenizer

from lapilli.checkpoints import hf
from lapilli.checkpoints.hf_processor import read_processor
from lapilli.checkpoints.hf_spec import decoder_type, spec_from_hf
from lapilli.errors import CheckpointError
from lapilli.messages import Conversation, Message, TextPart
from lapilli.model.llava import Llava
from lapilli.processor.builtin import TEMPLATES, jinja_source
from lapilli.processor.processor import Processor, PromptSettings
from lapilli.processor.tokenizer import train_tokenizer

Question = Callable[..., Conversation]


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(read(path) | values))


def with_images(processor: Processor, **settings: Any) -> Processor:
    images = replace(processor.images, **settings)
    words = processor.words.tokenizer
    return Processor(words, images, processor.prompt, processor.chat_template)


# What we write


@pytest.mark.parametrize("mode", ["pad", "crop", "squash"])
def test_their_processor_reads_what_we_write_with_equal_inputs(
    mode: str, model: Llava, processor: Processor, question: Question, tmp_path: Path
) -> None:
    processor = with_images(processor, mode=mode)
    hf.save(tmp_path, model, processor)
    theirs = AutoProcessor.from_pretrained(tmp_path)
    parts = [{"type": "image"}, {"type": "text", "text": "How many?"}]
    messages = [{"role": "user", "content": parts}]
    text = theirs.apply_chat_template(messages, add_generation_prompt=True)
    asked = question("How many?")
    (picture,) = asked[0].images
    wanted = theirs(text=text, images=[picture], return_tensors="pt")
    found = processor.batch([asked])
    assert found.input_ids.tolist() == wanted["input_ids"].tolist()
    assert found.pixel_values is not None
    assert (found.pixel_values - wanted["pixel_values"]).abs().max() < 1e-6


def test_their_tokenizer_gives_our_ids_and_knows_the_special_ones(
    folder: Path, processor: Processor
) -> None:
    theirs = AutoTokenizer.from_pretrained(folder)
    text = "<|user|><image>\nHow many? é ★<|end|>"
    assert theirs(text).input_ids == processor.words.encode(text, with_specials=True)
    assert (theirs.eos_token, theirs.pad_token) == ("<|end|>", "<pad>")
    assert theirs.padding_side == "left"
    assert theirs.model_max_length == processor.prompt.max_tokens


@pytest.mark.parametrize("name", [name for name in TEMPLATES if jinja_source(name)])
def test_turns_of_a_named_template_are_written_as_jinja(
    name: str, folder: Path, processor: Processor, question: Question
) -> None:
    end_of_turn = TEMPLATES[name].end_of_turn
    tokenizer = train_tokenizer(["USER: ASSISTANT:"], 300)
    tokenizer.add_special_tokens([end_of_turn])
    prompt = replace(processor.prompt, template=name, end_of_turn=end_of_turn)
    ours = Processor(tokenizer, processor.images, prompt)
    hf.save(folder, hf.load(folder)[0], ours)
    _, again = hf.load(folder)
    assert again.chat_template
    turns = (*question(), Message("assistant", (TextPart("Two."),)), *question())
    system = (Message("system", (TextPart("Look."),)), *turns)
    for conversation in (turns, system, question(num_pictures=2)):
        for is_asked in (True, False):
            wanted = ours.template.render(conversation, add_generation_prompt=is_asked)
            found = again.template.render(conversation, add_generation_prompt=is_asked)
            assert found == wanted


def test_a_processor_that_cannot_be_written_leaves_no_folder(
    folder: Path, processor: Processor, tmp_path: Path
) -> None:
    prompt = PromptSettings(processor.prompt.features_per_image, template="plain")
    plain = Processor(processor.words.tokenizer, processor.images, prompt)
    with pytest.raises(CheckpointError, match="template 'plain'"):
        hf.save(tmp_path / "other", hf.load(folder)[0], plain)
    assert not (tmp_path / "other").exists()


# Words and turns


def test_a_tokenizer_without_an_end_is_refused(folder: Path) -> None:
    change(folder / "tokenizer_config.json", eos_token=None)
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: names no eos_token"):
        hf.load(folder)


def test_a_tokenizer_without_the_image_token_is_refused(folder: Path) -> None:
    change(folder / "config.json", image_token_index=999)
    with pytest.raises(CheckpointError, match="has no token for the picture's id 999"):
        hf.load(folder)


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
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja: missing"):
        hf.load(folder)


@pytest.mark.parametrize(
    ("decoder", "end_of_turn", "name", "others"),
    [
        ("llama", "</s>", "vicuna_v1", "vicuna_v1, llava_v1, llava_llama_2, mistral_instruct"),
        ("mistral", "</s>", "mistral_instruct", "vicuna_v1, llava_v1, llava_llama_2, mistral"),
        (None, "</s>", "vicuna_v1", "vicuna_v1, llava_v1, llava_llama_2, mistral_instruct"),
        ("llama", "<|im_end|>", "chatml_direct", "chatml_direct, qwen"),
        ("qwen2", "<|im_end|>", "qwen", None),
        ("llama", "<|eot_id|>", "llama_3", None),
    ],
)
def test_without_a_template_decoder_and_end_of_turn_choose_and_doubt_is_said(
    decoder: str | None, end_of_turn: str, name: str, others: str | None, folder: Path,
    processor: Processor,
) -> None:  # fmt: skip
    (folder / "chat_template.jinja").unlink()
    tokenizer = train_tokenizer(["USER: ASSISTANT:"], 300)
    tokenizer.add_special_tokens([end_of_turn])
    tokenizer.save(str(folder / "tokenizer.json"))
    change(folder / "tokenizer_config.json", eos_token=end_of_turn)
    config = read(folder / "config.json")
    text = config["text_config"] | {"model_type": decoder, "sliding_window": None}
    if decoder is None:
        del text["model_type"]
    spec = spec_from_hf(config | {"text_config": text})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = read_processor(folder, spec, decoder_type(config | {"text_config": text}))
    assert (found.prompt.template, found.chat_template) == (name, None)
    said = [str(warning.message) for warning in caught]
    if others is None:
        assert not said
        return
    (line,) = said
    assert line.startswith(
        f"{folder / 'chat_template.jinja'}: missing; turns are written as {name}"
    )
    assert f"one of {others}" in line
    assert "\n" not in line


def test_a_template_that_is_no_text_is_refused(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja: not UTF-8 text"):
        hf.load(folder)


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
    path = folder / "chat_template.jinja"
    path.write_text(template + path.read_text())
    assert hf.load(folder)[1].prompt.bos_token == wanted


# Pictures


@pytest.mark.parametrize(
    ("values", "mode"),
    [
        ({"size": 16, "do_center_crop": True, "crop_size": 16, "do_pad": False}, "crop"),
        ({"size": {"shortest_edge": 16}, "do_center_crop": True, "do_pad": False}, "crop"),
        ({"size": {"shortest_edge": 16}, "do_center_crop": True, "do_pad": True}, "pad"),
        ({"size": {"height": 16, "width": 16}, "do_center_crop": False}, "squash"),
    ],
)
def test_the_ways_to_a_square_are_told_apart(
    folder: Path, values: dict[str, Any], mode: str
) -> None:
    change(folder / "preprocessor_config.json", **values)
    assert hf.load(folder)[1].images.mode == mode


def test_pictures_are_also_described_in_one_file_for_all(
    folder: Path, processor: Processor
) -> None:
    path = folder / "preprocessor_config.json"
    change(folder / "processor_config.json", image_processor=read(path))
    path.unlink()
    assert hf.load(folder)[1].images == processor.images


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"do_resize": False}, "do_resize is false"),
        ({"do_normalize": False}, "do_normalize is false"),
        ({"rescale_factor": 1.0}, r"rescale_factor is 1\.0"),
        ({"rescale_factor": "1/255"}, "rescale_factor is '1/255'"),
        ({"image_mean": None}, "image_mean is missing"),
        ({"image_mean": ["a", "b", "c"]}, "mean.0. must be a number"),
        ({"image_std": [0.5, 0.5]}, "std has 2 items; it takes 3"),
        ({"resample": 0}, "resample must be one of .*, not 0"),
        ({"resample": [3]}, "resample must be one of"),
        ({"size": {"height": 16, "width": 32}}, "supported is one square"),
        ({"size": {"height": [16], "width": [16]}}, "supported is one square"),
        ({"size": {"shortest_edge": 16}, "do_center_crop": False}, "do_center_crop is false"),
        ({"do_center_crop": True, "crop_size": 8}, "crop_size 8; supported is one square"),
        ({"size": 24, "do_center_crop": False, "do_pad": True}, "pictures of 24 pixels"),
    ],
)
def test_pictures_prepared_otherwise_are_refused(
    folder: Path, values: dict[str, Any], reason: str
) -> None:
    change(folder / "preprocessor_config.json", **values)
    with pytest.raises(CheckpointError, match=rf"preprocessor_config\.json: .*{reason}"):
        hf.load(folder)
