"""GGUF files: read back by the format's own reader, by `transformers` and by llama.cpp itself.

What needs llama.cpp is skipped where the package llama-cpp-python is not installed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM

from lapilli.checkpoints import gguf
from lapilli.checkpoints.gguf_words import GgufWords, gguf_words
from lapilli.errors import CheckpointError
from lapilli.messages import ImagePart, Message, TextPart
from lapilli.model.llava import Llava
from lapilli.model.spec import LlavaSpec
from lapilli.processor.processor import Processor, PromptSettings

Make = Callable[[LlavaSpec], Llava]

ROOT = Path(__file__).parents[2]

_LLAMA3_ROPE = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip


def tensors(path: Path) -> dict[str, Tensor]:
    """What a file holds, as fp32."""
    return {
        t.name: torch.tensor(dequantize(t.data, t.tensor_type).reshape(t.shape[::-1].tolist()))
        for t in GGUFReader(path).tensors
    }


def keys(path: Path) -> dict[str, Any]:
    """What a file says of itself."""
    fields = GGUFReader(path).fields
    return {name: field.contents() for name, field in fields.items() if name[:4] != "GGUF"}


def message(call: Callable[[], object]) -> str:
    """What a refusal says, in one line."""
    with pytest.raises(CheckpointError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# The language model


@torch.inference_mode()
def test_transformers_computes_the_same_logits(
    model: Llava, processor: Processor, tmp_path: Path
) -> None:
    gguf.save(tmp_path, model, processor, kind="f32")
    if model.spec.decoder.rope_scaling is not None:
        pytest.skip("transformers reads no scaled positions from GGUF")
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="model-f32.gguf", dtype=torch.float32
    )
    ids = torch.tensor([[6, 7, 8, 9, 10, 280]])
    positions, groups = torch.arange(6)[None], torch.zeros(1, 6, dtype=torch.long)
    wanted = model(ids, positions, groups)
    torch.testing.assert_close(theirs(input_ids=ids).logits, wanted, atol=1e-4, rtol=0)


def test_a_window_ends_the_context(model: Llava, processor: Processor, tmp_path: Path) -> None:
    gguf.save(tmp_path, model, processor)
    decoder = model.spec.decoder
    said = keys(tmp_path / "model-f16.gguf")
    arch = "qwen2" if decoder.has_qkv_bias else "llama"
    assert said["general.architecture"] == arch
    assert said[f"{arch}.context_length"] == (decoder.sliding_window or decoder.max_positions)


def test_bands_of_positions_are_written_as_their_factors(
    specs: dict[str, LlavaSpec], make: Make, processor: Processor, tmp_path: Path
) -> None:
    spec = specs["clip, llama, tied"]
    spec = replace(spec, decoder=replace(spec.decoder, rope_scaling=_LLAMA3_ROPE))
    gguf.save(tmp_path, make(spec), processor)
    factors = tensors(tmp_path / "model-f16.gguf")["rope_freqs.weight"]
    assert factors.shape == (spec.decoder.head_dim // 2,)
    assert factors[0] == 1  # 2 pi is shorter than 32 / 4
    assert factors[-1] == 8


@pytest.mark.parametrize(("kind", "step"), [("f32", 0), ("f16", 2**-11), ("bf16", 2**-8)])
def test_matrices_are_rounded_and_vectors_kept(
    kind: gguf.Kind, step: float, specs: dict[str, LlavaSpec], make: Make, processor: Processor,
    tmp_path: Path,
) -> None:  # fmt: skip
    model = make(specs["clip, qwen2"])
    gguf.save(tmp_path, model, processor, kind=kind)
    held = tensors(tmp_path / f"model-{kind}.gguf") | tensors(tmp_path / f"mmproj-{kind}.gguf")
    for theirs, ours in (
        ("blk.1.ffn_down.weight", "language_model.layers.1.mlp.down_proj.weight"),
        ("token_embd.weight", "language_model.embed_tokens.weight"),
        ("v.blk.0.attn_q.weight", "vision_tower.layers.0.attention.q_proj.weight"),
        ("mm.2.weight", "projector.linear_2.weight"),
    ):
        wanted = model.state_dict()[ours]
        assert ((held[theirs] - wanted).abs() <= step * wanted.abs() + 1e-7).all(), theirs
    for theirs, ours in (
        ("blk.0.attn_q.bias", "language_model.layers.0.attention.q_proj.bias"),
        ("v.blk.1.ln2.weight", "vision_tower.layers.1.norm2.weight"),
        ("v.patch_embd.weight", "vision_tower.patch_embedding.weight"),
    ):
        assert torch.equal(held[theirs], model.state_dict()[ours]), theirs


def test_q8_0_holds_matrices_in_blocks_and_leaves_the_tower_f16(
    specs: dict[str, LlavaSpec], make: Make, processor: Processor, tmp_path: Path
) -> None:
    gguf.save(tmp_path, make(specs["clip, llama, tied"]), processor, kind="q8_0")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mmproj-f16.gguf", "model-q8_0.gguf"]
    types = {t.name: t.tensor_type for t in GGUFReader(tmp_path / "model-q8_0.gguf").tensors}
    assert types["blk.0.ffn_up.weight"] == GGMLQuantizationType.Q8_0
    assert types["blk.0.ffn_down.weight"] == GGMLQuantizationType.F16  # rows of 48
    assert types["output_norm.weight"] == GGMLQuantizationType.F32
    towers = {t.tensor_type for t in GGUFReader(tmp_path / "mmproj-f16.gguf").tensors}
    assert towers == {GGMLQuantizationType.F16, GGMLQuantizationType.F32}


# The vision tower


@torch.inference_mode()
def test_positions_stay_with_their_patches_whichever_way_tokens_are_ordered(
    model: Llava, processor: Processor, tmp_path: Path
) -> None:
    gguf.save(tmp_path, model, processor, kind="f32")
    held = tensors(tmp_path / "mmproj-f32.gguf")
    tower = model.vision_tower
    pixels = torch.rand(1, 3, tower.spec.image_size, tower.spec.image_size)
    patches = torch.nn.functional.conv2d(
        pixels, held["v.patch_embd.weight"], stride=tower.spec.patch_size
    )
    patches = patches.flatten(2).transpose(1, 2)[0] + held["v.patch_embd.bias"]
    wanted = tower.embed(pixels)[0]
    for is_first in (True, False):
        tokens, order = patches, wanted
        if tower.spec.has_class_token:
            own = held["v.class_embd"][None]
            tokens = torch.cat([own, patches] if is_first else [patches, own])
            order = wanted if is_first else torch.cat([wanted[1:], wanted[:1]])
        tokens = tokens + held["v.position_embd.weight"]
        if tower.spec.has_pre_norm:
            weight, bias = held["v.pre_ln.weight"], held["v.pre_ln.bias"]
            tokens = torch.nn.functional.layer_norm(
                tokens, tokens.shape[1:], weight, bias, tower.spec.norm_eps
            )
        torch.testing.assert_close(tokens, order, atol=1e-5, rtol=0)


def test_layers_after_the_features_are_left_out(
    model: Llava, processor: Processor, tmp_path: Path
) -> None:
    gguf.save(tmp_path, model, processor)
    path = tmp_path / "mmproj-f16.gguf"
    said, count = keys(path), model.spec.vision.num_feature_layers
    assert said["clip.vision.block_count"] == count
    assert said["clip.vision.feature_layer"] == [count]
    names = [name for name in tensors(path) if name.startswith("v.blk.")]
    assert {name.split(".")[2] for name in names} == {str(index) for index in range(count)}
    assert not any("post_ln" in name for name in tensors(path))


def test_settings_of_pictures_are_written(
    specs: dict[str, LlavaSpec], make: Make, processor: Processor, tmp_path: Path
) -> None:
    gguf.save(tmp_path, make(specs["clip, qwen2"]), processor, name="tiny", license="MIT")
    said = keys(tmp_path / "mmproj-f16.gguf")
    assert said["general.name"] == "tiny"
    assert said["general.license"] == "MIT"
    np.testing.assert_allclose(said["clip.vision.image_mean"], processor.images.mean)
    np.testing.assert_allclose(said["clip.vision.image_std"], processor.images.std)
    assert said["clip.use_gelu"] is False  # and not SiLU either, so CLIP's own
    assert said["clip.projector_type"] == "mlp"


# Words


def test_words_merges_and_template_are_written(
    specs: dict[str, LlavaSpec], make: Make, processor: Processor, tmp_path: Path
) -> None:
    gguf.save(tmp_path, make(specs["clip, qwen2"]), processor)
    said = keys(tmp_path / "model-f16.gguf")
    vocab = processor.words.tokenizer.get_vocab()
    assert said["tokenizer.ggml.tokens"] == sorted(vocab, key=lambda word: vocab[word])
    assert said["tokenizer.ggml.pre"] == "gpt-2"
    assert said["tokenizer.ggml.token_type"][:7] == [3, 3, 3, 3, 3, 3, 1]
    assert said["tokenizer.ggml.eos_token_id"] == processor.end_id
    assert said["tokenizer.ggml.add_bos_token"] is False
    assert said["tokenizer.chat_template"] == processor.chat_template
    merges = json.loads(processor.words.tokenizer.to_str())["model"]["merges"]
    assert said["tokenizer.ggml.merges"] == [" ".join(pair) for pair in merges]


def rebuilt(processor: Processor, **changes: Any) -> Processor:
    """The processor with another tokenizer: parts of its JSON replaced."""
    content = json.loads(processor.words.tokenizer.to_str())
    content["model"] |= changes.pop("model", {})
    tokenizer = Tokenizer.from_str(json.dumps(content | changes))
    return Processor(tokenizer, processor.images, processor.prompt, processor.chat_template)


def test_embeddings_without_a_word_are_never_used(processor: Processor) -> None:
    words = gguf_words(processor, 300)
    assert words.tokens[284:] == [f"[PAD{id}]" for id in range(284, 300)]
    assert set(words.types[284:]) == {5}


def split(pattern: str) -> dict[str, Any]:
    step = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    bytes_ = {
        "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False
    }  # fmt: skip
    return {"type": "Sequence", "pretokenizers": [step, bytes_]}


_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def test_published_splitters_are_recognized(processor: Processor) -> None:
    llama3 = _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
    alone = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
             "use_regex": True}  # fmt: skip
    for changes, name in (
        ({"pre_tokenizer": alone}, "gpt-2"),
        ({"pre_tokenizer": split(_QWEN2), "normalizer": {"type": "NFC"}}, "qwen2"),
        ({"pre_tokenizer": split(llama3), "model": {"ignore_merges": True}}, "llama-bpe"),
    ):
        assert gguf_words(rebuilt(processor, **changes), 284).pre == name


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pre_tokenizer": split(r"\w+")}, "words by '\\\\w+'"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "pre-tokenizer Whitespace"),
        ({"normalizer": {"type": "Lowercase"}}, "normalizer Lowercase"),
        ({"model": {"ignore_merges": True}}, "words by"),
    ],
)
def test_a_tokenizer_that_llama_cpp_lacks_is_refused(
    changes: dict[str, Any], said: str, processor: Processor
) -> None:
    changed = rebuilt(processor, **changes)
    text = message(lambda: gguf_words(changed, 284))
    assert said in text
    assert text.endswith("llama.cpp has no form for it; use --to hf")


def pieces(merges: list[tuple[str, str]], images: Any, **changes: Any) -> Processor:
    """A processor whose tokenizer is SentencePiece's in Llama's form."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    letters = ["▁", "a", "b", "c"]
    unions = list(dict.fromkeys(first + second for first, second in merges))
    vocab = {
        word: id for id, word in enumerate(["<unk>", "<s>", "</s>", *bytes_, *unions, *letters])
    }
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>", "<image>"])
    tokenizer.add_tokens(["[x]"])
    content = json.loads(tokenizer.to_str()) | changes
    prompt = PromptSettings(4, "<image>", "</s>", "<s>", "vicuna_v1")
    return Processor(Tokenizer.from_str(json.dumps(content)), images, prompt)


_MERGES = [("a", "b"), ("▁", "ab"), ("▁", "a"), ("▁a", "b"), ("b", "c")]
_GROUPED = [("a", "b"), ("▁", "a"), ("▁", "ab"), ("▁a", "b"), ("b", "c")]


def by_scores(words: GgufWords, text: str) -> list[str]:
    """Pieces of a text, merged as llama.cpp does: the best union first, then the leftmost."""
    symbols = list("▁" + text.replace(" ", "▁"))
    assert words.scores is not None
    scores = dict(zip(words.tokens, words.scores, strict=True))
    while True:
        unions = [(first + second) for first, second in pairwise(symbols)]
        known = [(-scores[u], i) for i, u in enumerate(unions) if u in scores]
        if not known:
            return symbols
        _, index = min(known)
        symbols[index : index + 2] = [unions[index]]


def test_scores_merge_in_the_order_of_the_merges(processor: Processor) -> None:
    made = pieces(_GROUPED, processor.images)
    words = gguf_words(made, 270)
    assert (words.model, words.pre, words.bos_id) == ("llama", "default", 1)
    for text in ("ab", "abc", "a b", "cab ab", "bcabc aab"):
        wanted = made.words.tokenizer.encode(text, add_special_tokens=False).tokens
        assert by_scores(words, text) == wanted
    kinds = dict(zip(words.tokens, words.types, strict=True))
    assert [kinds[w] for w in ("<unk>", "<s>", "<0x0A>", "[x]", "ab")] == [2, 3, 6, 4, 1]


@pytest.mark.parametrize(
    ("merges", "changes", "said"),
    [
        (_MERGES, {}, "merges that no score of their unions orders"),
        (_GROUPED[:3] + _GROUPED[4:], {}, "merges that no score of their unions orders"),
        (_GROUPED, {"pre_tokenizer": None}, "pieces that do not begin with a space"),
    ],
)
def test_pieces_in_another_order_are_refused(
    merges: list[tuple[str, str]], changes: dict[str, Any], said: str, processor: Processor
) -> None:
    made = pieces(merges, processor.images, **changes)
    assert said in message(lambda: gguf_words(made, 270))


# What has no form


@pytest.mark.parametrize(
    ("name", "part", "changes", "said"),
    [
        ("clip, qwen2", "", {"projector": "linear"}, "projector 'linear'"),
        ("clip, qwen2", "vision", {"mlp_width": 32}, "mlp_width is its width, 32"),
        ("clip, qwen2", "decoder", {"head_dim": 16}, "4 heads of 16 in a width of 32"),
        ("clip, qwen2", "decoder", {"rope_scaling": _LLAMA3_ROPE}, "rope_scaling 'llama3'"),
    ],
)
def test_an_architecture_that_llama_cpp_lacks_is_refused(
    name: str, part: str, changes: dict[str, Any], said: str, specs: dict[str, LlavaSpec],
    make: Make, processor: Processor, tmp_path: Path,
) -> None:  # fmt: skip
    spec = specs[name]
    if part:
        changes = {part: replace(getattr(spec, part), **changes)}
    model = make(replace(spec, **changes))
    assert said in message(lambda: gguf.save(tmp_path / "out", model, processor))
    assert not (tmp_path / "out").exists()


def test_numbers_beyond_f16_are_refused(
    specs: dict[str, LlavaSpec], make: Make, processor: Processor, tmp_path: Path
) -> None:
    model = make(specs["clip, qwen2"])
    model.state_dict()["projector.linear_2.weight"][0, 0] = 1e6
    said = message(lambda: gguf.save(tmp_path, model, processor))
    assert said == "mmproj-f16.gguf: mm.2.weight holds numbers beyond f16; use --type bf16"


def test_the_missing_package_is_named(
    model: Llava, processor: Processor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    said = message(lambda: gguf.save(tmp_path, model, processor))
    assert "pip install 'lapilli[gguf]'" in said


# llama.cpp itself


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The class that drives llama.cpp, from the benchmarks."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield __import__("llamacpp").LlamaCpp
    sys.modules.pop("llamacpp", None)


@torch.inference_mode()
def test_llama_cpp_computes_the_same(
    spec: LlavaSpec, make: Make, processor: Processor, peer: Any, tmp_path: Path
) -> None:
    model = make(replace(spec, decoder=replace(spec.decoder, sliding_window=None)))
    gguf.save(tmp_path, model, processor, kind="f32")
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
    picture = Image.fromarray(pixels)
    conversation = (Message("user", (ImagePart(picture), TextPart("How many red circles?"))),)
    inputs = processor.batch([conversation])
    reply = peer(tmp_path / "model-f32.gguf", tmp_path / "mmproj-f32.gguf", 64).ask(
        ["<|user|>", "\nHow many red circles?<|assistant|>"], [picture], 1
    )
    ids = inputs.input_ids[0]
    assert reply.prompt_ids == ids[ids != processor.image_token_id].tolist()
    assert inputs.pixel_values is not None
    features = model.encode_images(inputs.pixel_values)
    theirs = torch.from_numpy(reply.features)
    if spec.vision.has_class_token and (features - theirs).abs().max() > 0.05:
        # Its versions since May 2025 leave out the first patch and hand on the class token.
        tower = model.vision_tower
        tower.patches = lambda x: torch.cat([x[:, 2:], x[:, :1]], 1)  # type: ignore[method-assign]
        features = model.encode_images(inputs.pixel_values)
    torch.testing.assert_close(theirs, features, atol=0.05, rtol=0)  # its GELU is rounded
    torch.testing.assert_close(
        torch.from_numpy(reply.logits), model(**inputs)[0, -1], atol=0.05, rtol=0
    )
