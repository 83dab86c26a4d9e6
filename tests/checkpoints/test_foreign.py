"""Decoders that `transformers` runs: equal to its own, loaded, written, and refused."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from their_names import names_in_memory_of_5, names_on_disk
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from lapilli.checkpoints import gguf, hf, native
from lapilli.checkpoints.hf_spec import spec_from_hf
from lapilli.engine.engine import Engine
from lapilli.errors import CheckpointError, ConfigError, PromptError
from lapilli.inputs import Inputs
from lapilli.messages import Conversation, Sampling
from lapilli.model.cache import Span, Stretch
from lapilli.model.foreign import (
    ForeignCache,
    ForeignDecoder,
    ForeignStepper,
    ForeignView,
    foreign_spec,
)
from lapilli.model.masks import packed_mask
from lapilli.model.spec import FOREIGN_DECODERS, ForeignSpec
from lapilli.processor.processor import Processor
from lapilli.processor.tokenizer import Words

Question = Callable[..., Conversation]

VOCAB, CONTEXT, WINDOW = 284, 64, 5
SIZES = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": CONTEXT, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
"""Of a small decoder; one of few heads takes its keys alone."""
SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]
OWN: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": CONTEXT},
    "gpt_bigcode": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": CONTEXT},
    "granite": {"embedding_multiplier": 3.0, "logits_scaling": 4.0},
    "gemma2": {"final_logit_softcapping": 5.0, "attn_logit_softcapping": 5.0},
    "mpt": {
        "d_model": 32, "n_heads": 4, "n_layers": 3, "max_seq_len": CONTEXT, "expansion_ratio": 2,
    },
    "phi3": {"sliding_window": WINDOW},
    "starcoder2": {"sliding_window": WINDOW},
    "qwen3": {"use_sliding_window": True},
}  # fmt: skip
NAMED = ("qwen3", "gemma2", "gemma3_text", "phi3", "stablelm", "gpt_neox", "olmo2", "granite")
"""Decoders that go the whole way, from a folder to an answer."""

# Older versions of transformers build some decoders with what torch has come to discourage.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
slower = pytest.mark.filterwarnings("ignore:this model's decoder.*runs through transformers")


def config_of(kind: str) -> dict[str, Any]:
    """A configuration of a few thousand weights, its windows smaller than the tests' texts."""
    has_own_names = any(key in OWN.get(kind, {}) for key in ("n_embd", "d_model"))
    sizes = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2} if has_own_names else SIZES
    layers = (
        {"sliding_window": WINDOW, "layer_types": SLIDING}
        if FOREIGN_DECODERS[kind] == "layers"
        else {}
    )
    if kind == "falcon":  # it reckons its heads' width itself
        sizes = {key: value for key, value in sizes.items() if key != "head_dim"}
    return {"model_type": kind, **sizes, **layers, **OWN.get(kind, {})}


def drawn(module: torch.nn.Module) -> None:
    torch.manual_seed(0)
    for name, weight in module.named_parameters():
        is_table = any(word in name for word in ("embed", "wte"))
        scale = 0.05 if is_table else 0.2
        torch.nn.init.normal_(weight, 1.0 if weight.ndim == 1 else 0.0, scale)


class Pair:
    """Our decoder and the language model of theirs with equal weights."""

    def __init__(self, kind: str) -> None:
        self.ours = ForeignDecoder(foreign_spec(config_of(kind))).eval()
        drawn(self.ours)
        self.whole = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config_of(kind)))
        self.whole.eval().base_model.load_state_dict(self.ours.body.state_dict())
        self.whole.get_output_embeddings().load_state_dict(self.ours.lm_head.output.state_dict())

    def logits(
        self,
        ids: Tensor,
        positions: Tensor,
        mask: Tensor | None = None,
        cache: ForeignView | None = None,
    ) -> Tensor:
        ours = self.ours
        return ours.lm_head(ours(ours.embed_tokens(ids), positions, mask, cache))

    def theirs(self, ids: Tensor) -> Tensor:
        return self.whole(input_ids=ids, use_cache=False).logits


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def texts(*lengths: int) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randint(3, VOCAB, (1, length)) for length in lengths]


@pytest.fixture(params=FOREIGN_DECODERS)
def pair(request: pytest.FixtureRequest) -> Pair:
    return Pair(request.param)


# The decoder alone


@torch.inference_mode()
def test_logits_equal_those_of_the_whole_language_model(pair: Pair) -> None:
    (ids,) = texts(17)
    assert_close(pair.logits(ids, torch.arange(17)[None]), pair.theirs(ids))


@torch.inference_mode()
def test_packed_rows_equal_separate_rows(pair: Pair) -> None:
    first, second = texts(9, 8)
    positions = torch.cat([torch.arange(9), torch.arange(8)])[None]
    groups = torch.tensor([[0] * 9 + [1] * 8])
    packed = pair.logits(torch.cat([first, second], 1), positions, packed_mask(groups))
    assert_close(packed, torch.cat([pair.theirs(first), pair.theirs(second)], 1))


@torch.inference_mode()
def test_a_branch_sees_its_trunk_and_itself_or_is_refused(pair: Pair) -> None:
    trunk, first, second = texts(5, 6, 6)
    branches = torch.tensor([[0] * 5 + [1] * 6 + [2] * 6])
    positions = torch.cat([torch.arange(11), torch.arange(5, 11)])[None]
    ids = torch.cat([trunk, first, second], 1)
    mask = packed_mask(torch.zeros_like(ids), branches)
    if pair.ours.windows == "places":
        with pytest.raises(PromptError, match="mpt counts distances in places of the row"):
            pair.logits(ids, positions, mask)
        return
    logits = pair.logits(ids, positions, mask)
    assert_close(logits[:, :11], pair.theirs(ids[:, :11]))
    assert_close(logits[:, 11:], pair.theirs(torch.cat([trunk, second], 1))[:, 5:])


@torch.inference_mode()
def test_steps_side_by_side_equal_whole_texts_and_sequences_can_go(pair: Pair) -> None:
    rows = texts(7, 9)
    places: list[list[Stretch]] = [[(0, 4), (20, 36)], [(4, 20)]]
    cache = ForeignCache(40, torch.device("cpu"))
    whole = torch.cat([pair.theirs(row) for row in rows], 1)
    positions = torch.cat([torch.arange(7), torch.arange(9)])[None]
    spans = [Span(stretches, 0, row.shape[1]) for stretches, row in zip(places, rows, strict=True)]
    assert_close(pair.logits(torch.cat(rows, 1), positions, None, cache.read(spans)), whole)

    stepper = ForeignStepper(pair.ours)
    for number in range(6):
        if number == 3:
            rows = rows[:1]
        tokens = torch.tensor([5 * number + 3, 7 * number + 4])[: len(rows)]
        lengths = [row.shape[1] for row in rows]
        spans = [Span(part, length, 1) for part, length in zip(places, lengths, strict=False)]
        rows = [
            torch.cat([row, token.view(1, 1)], 1) for row, token in zip(rows, tokens, strict=True)
        ]
        wanted = torch.cat([pair.theirs(row)[:, -1] for row in rows])
        assert_close(stepper(tokens, torch.tensor(lengths), cache.step(spans)), wanted)


def test_a_cast_rounds_weights_and_no_constants(pair: Pair) -> None:
    before = {name: value.clone() for name, value in pair.ours.named_buffers()}
    pair.ours.bfloat16()
    assert pair.ours.embed_tokens.weight.dtype == torch.bfloat16
    for name, value in pair.ours.named_buffers():
        assert torch.equal(value, before[name]), name


def test_it_learns_from_packed_rows_in_bf16() -> None:
    pair = Pair("gemma2")
    first, second = texts(9, 8)
    positions = torch.cat([torch.arange(9), torch.arange(8)])[None]
    mask = packed_mask(torch.tensor([[0] * 9 + [1] * 8]))
    with torch.autocast("cpu", torch.bfloat16):
        logits = pair.logits(torch.cat([first, second], 1), positions, mask)
    logits.float().logsumexp(-1).sum().backward()
    assert all(weight.grad is not None for weight in pair.ours.parameters())


# In a LLaVA


def their_llava(kind: str) -> LlavaForConditionalGeneration:
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2,
        image_size=16, patch_size=8,
    )  # fmt: skip
    text = AutoConfig.for_model(**config_of(kind))
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=5)
    )
    drawn(model)
    return model.eval()


def write_theirs(folder: Path, model: LlavaForConditionalGeneration, processor: Processor) -> Path:
    folder.mkdir()
    processor.words.tokenizer.save(str(folder / "tokenizer.json"))
    pictures = {
        "crop_size": {"height": 16, "width": 16}, "do_center_crop": True, "resample": 3,
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
        "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 16},
    }  # fmt: skip
    words = {"eos_token": {"content": "<|end|>"}, "pad_token": "<pad>", "bos_token": "<|user|>"}
    for name, content in {
        "tokenizer_config.json": words,
        "chat_template.json": {"chat_template": processor.chat_template},
        "preprocessor_config.json": pictures,
    }.items():
        (folder / name).write_text(json.dumps(content))
    model.save_pretrained(folder)
    return folder


def finished(logits: Tensor, kind: str) -> Tensor:
    """What the text model does to the logits of its head, and LLaVA in `transformers` 5 leaves
    off."""
    if kind == "gemma2":
        return 5.0 * (logits / 5.0).tanh()
    return logits / 4.0 if kind == "granite" else logits


def their_logits(model: LlavaForConditionalGeneration, inputs: Inputs, kind: str) -> Tensor:
    logits = model(
        input_ids=inputs.input_ids,
        attention_mask=(inputs.groups >= 0).long(),
        pixel_values=inputs.pixel_values,
    ).logits
    return finished(logits, kind)[inputs.groups >= 0]


class Spelled(Words):
    """Words whose text is their ids."""

    def decode(self, ids: list[int]) -> str:
        return "".join(f"{token} " for token in ids)


@slower
@torch.inference_mode()
@pytest.mark.parametrize("kind", NAMED)
def test_a_folder_of_theirs_loads_answers_and_comes_back(
    kind: str, processor: Processor, question: Question, tmp_path: Path
) -> None:
    theirs = their_llava(kind)
    folder = write_theirs(tmp_path / "theirs", theirs, processor)
    model, its_processor = hf.load(folder)
    asked = [question("How many red circles are there?", num_pictures=2), question("How many?")]
    for conversations in ([asked[1]], asked):
        inputs = its_processor.batch(conversations)
        ours = model(**inputs)[inputs.groups >= 0]
        assert_close(ours, their_logits(theirs, inputs, kind))

    inputs = its_processor.batch(asked)
    made = theirs.generate(
        input_ids=inputs.input_ids,
        attention_mask=(inputs.groups >= 0).long(),
        pixel_values=inputs.pixel_values,
        max_new_tokens=20,
        do_sample=False,
        eos_token_id=its_processor.end_id,
        pad_token_id=0,
    )[:, inputs.input_ids.shape[1] :].tolist()
    wanted = [list(takewhile(lambda token: token != its_processor.end_id, ids)) for ids in made]
    spelling = copy.copy(its_processor)
    spelling.words = Spelled(its_processor.words.tokenizer)
    told = ["", ""]
    for piece in Engine(model, spelling).respond(asked, Sampling(20)):
        told[piece.index] += piece.text
    assert [[int(word) for word in text.split()] for text in told] == wanted

    native.save(tmp_path / "native", model, its_processor)
    again, _ = native.load(tmp_path / "native")
    assert again.spec == model.spec
    hf.save(tmp_path / "back", again, its_processor)
    back, report = LlavaForConditionalGeneration.from_pretrained(
        tmp_path / "back", output_loading_info=True
    )
    assert not any(report.values()), report
    weights = back.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in theirs.state_dict().items())


@slower
@pytest.mark.parametrize("rename", [names_in_memory_of_5, names_on_disk])
@torch.inference_mode()
def test_weights_are_read_by_the_names_of_every_version(
    rename: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    processor: Processor,
    question: Question,
    tmp_path: Path,
) -> None:
    theirs = their_llava("gpt_neox")
    folder = write_theirs(tmp_path / "theirs", theirs, processor)
    weights = rename(dict(theirs.state_dict()))
    if rename is names_on_disk:  # as version 4.46 had them
        weights = {
            name.replace("language_model.model.", "language_model.gpt_neox.").replace(
                "language_model.lm_head.", "language_model.embed_out."
            ): value
            for name, value in weights.items()
        }
    save_file(weights, folder / "model.safetensors")
    model, its_processor = hf.load(folder)
    inputs = its_processor.batch([question()])
    assert_close(model(**inputs)[0], their_logits(theirs, inputs, "gpt_neox"))


def test_that_it_is_slower_is_told(processor: Processor, tmp_path: Path) -> None:
    folder = write_theirs(tmp_path / "theirs", their_llava("qwen3"), processor)
    with pytest.warns(UserWarning, match="decoder, qwen3, runs through transformers: slower"):
        hf.load(folder)


@slower
def test_what_no_gguf_holds_is_refused(processor: Processor, tmp_path: Path) -> None:
    model, its_processor = hf.load(
        write_theirs(tmp_path / "theirs", their_llava("qwen3"), processor)
    )
    with pytest.raises(CheckpointError, match=r"decoder 'qwen3': llama\.cpp has no form for it"):
        gguf.save(tmp_path / "gguf", model, its_processor, kind="f16")


# What is refused


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"model_type": "mamba"}, "model_type is 'mamba'"),
        ({"model_type": "rwkv"}, "model_type is 'rwkv'"),
        ({"auto_map": {"AutoConfig": "code.Config"}}, "auto_map names code to run"),
        ({"rope_scaling": {"auto_map": {}}}, "auto_map names code to run"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ({"model_type": "falcon", "alibi": True}, "alibi is True"),
        ({"layer_types": ["linear_attention"] * 3}, "layer_types"),
        ({"hidden_size": 10**12}, "hidden_size is 1000000000000; supported is up to"),
        ({"hidden_size": "wide"}, "transformers cannot build this qwen3"),
        ({"hidden_size": float("nan")}, "no plain JSON"),
        ({"note": "x" * 2**17}, "characters; supported is"),
    ],
)
def test_a_configuration_that_cannot_run_here_is_refused(
    values: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        foreign_spec(config_of("qwen3") | values)
    assert "\n" not in str(caught.value)


def test_no_kernel_is_downloaded_at_a_configurations_word() -> None:
    names = ("attn_implementation", "_attn_implementation", "experts_implementation")
    spec = foreign_spec(config_of("qwen3") | dict.fromkeys(names, "org/kernel"))
    assert not spec.config.keys() & set(names)
    assert ForeignDecoder(spec).body.config._attn_implementation == "sdpa"


def test_numbers_that_contradict_their_configuration_are_refused() -> None:
    spec = foreign_spec(config_of("qwen3"))
    false = ForeignSpec(spec.config, VOCAB, 64, 3, CONTEXT, spec.is_tied)
    with pytest.raises(ConfigError, match="its numbers are not those of its config"):
        ForeignDecoder(false)


def test_a_section_of_a_llava_folder_names_its_fault() -> None:
    text = config_of("qwen3") | {"hidden_size": "wide"}
    config = {"model_type": "llava", "text_config": text}
    config["vision_config"] = CLIPVisionConfig().to_dict()
    with pytest.raises(CheckpointError, match=r"^config\.json: text_config: transformers cannot"):
        spec_from_hf(config)


@pytest.mark.slow
def test_the_embedded_model_needs_no_models_of_transformers() -> None:
    code = (
        "import sys; from lapilli import load; load(device='cpu');"
        "print([name for name in sys.modules if name.startswith('transformers.models')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", done.stderr
