"""GGUF files for llama.cpp and what is built on it: written, never read.

model-TYPE.gguf      the language model with its tokenizer and chat template
mmproj-TYPE.gguf     the vision tower and the projector

Source: llama.cpp, `src/models/`, `tools/mtmd/clip.cpp` and `tools/mtmd/models/llava.cpp`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from lapilli.checkpoints.gguf_words import gguf_words
from lapilli.errors import CheckpointError
from lapilli.model.llava import Llava
from lapilli.model.rope import rotary_frequencies
from lapilli.model.spec import DecoderSpec, ForeignSpec, LlavaSpec, VisionSpec
from lapilli.processor.processor import Processor

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFWriter

# H heads, K head width, D width, P patches

Kind = Literal["f32", "f16", "bf16", "q8_0"]

_FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}
"""The numbers of `general.file_type`."""
_Q8_BLOCK = 32
"""Numbers that share a scale; a row that does not divide into blocks stays f16."""

_DECODER = {
    "embed_tokens.": "token_embd.",
    "norm.": "output_norm.",
    "lm_head.": "output.",
}
_IN_DECODER_LAYER = {
    "input_norm.": "attn_norm.",
    "attention.q_proj.": "attn_q.",
    "attention.k_proj.": "attn_k.",
    "attention.v_proj.": "attn_v.",
    "attention.o_proj.": "attn_output.",
    "post_attention_norm.": "ffn_norm.",
    "mlp.gate_proj.": "ffn_gate.",
    "mlp.up_proj.": "ffn_up.",
    "mlp.down_proj.": "ffn_down.",
}
_IN_VISION_LAYER = {
    "norm1.": "ln1.",
    "attention.q_proj.": "attn_q.",
    "attention.k_proj.": "attn_k.",
    "attention.v_proj.": "attn_v.",
    "attention.out_proj.": "attn_out.",
    "norm2.": "ln2.",
    "fc1.": "ffn_up.",
    "fc2.": "ffn_down.",
}
_PROJECTOR = {"linear_1.": "mm.0.", "linear_2.": "mm.2."}

Tensors = dict[str, Tensor]


def save(
    folder: Path,
    model: Llava,
    processor: Processor,
    *,
    kind: Kind = "f16",
    name: str = "",
    license: str = "",
    progress: Callable[[str], None] = lambda _: None,
) -> None:
    """Write `model-KIND.gguf` and `mmproj-KIND.gguf`.

    Args:
        kind: of the matrices; vectors and embeddings of pictures stay f32. With "q8_0" the second
            file is f16, since a vision tower is small and feels rounding most.
        name, license: for people; left out when empty.
        progress: told each file before it is written.

    Raises:
        CheckpointError: llama.cpp has no form for the model, or its numbers do not fit `kind`.
    """
    spec = model.spec
    decoder = _check(spec)
    writer_class = _writer_class()
    words = gguf_words(processor, decoder.vocab_size)
    arch = "qwen2" if decoder.has_qkv_bias else "llama"
    folder.mkdir(parents=True, exist_ok=True)

    path = folder / f"model-{kind}.gguf"
    progress(path.name)
    writer = writer_class(path, arch)
    _describe(writer, "model", kind, name, license)
    _describe_decoder(writer, decoder)
    writer.add_tokenizer_model(words.model)
    writer.add_tokenizer_pre(words.pre)
    writer.add_token_list(words.tokens)
    writer.add_token_types(words.types)
    if words.scores is not None:
        writer.add_token_scores(words.scores)
    if words.merges is not None:
        writer.add_token_merges(words.merges)
    writer.add_eos_token_id(words.eos_id)
    if words.bos_id is not None:
        writer.add_bos_token_id(words.bos_id)
    if words.pad_id is not None:
        writer.add_pad_token_id(words.pad_id)
    writer.add_add_bos_token(words.bos_id is not None)
    writer.add_add_eos_token(False)
    if words.chat_template is not None:
        writer.add_chat_template(words.chat_template)
    _write(writer, path, _decoder_tensors(model, decoder, arch), kind)

    kind = "f16" if kind == "q8_0" else kind
    path = folder / f"mmproj-{kind}.gguf"
    progress(path.name)
    writer = writer_class(path, "clip")
    _describe(writer, "mmproj", kind, name, license)
    _describe_vision(writer, spec, processor)
    _write(writer, path, _vision_tensors(model), kind)


def _check(spec: LlavaSpec) -> DecoderSpec:
    """Refuse what has no form there; return the decoder's numbers."""
    vision, decoder = spec.vision, spec.decoder
    if isinstance(decoder, ForeignSpec):
        raise _no_form(f"decoder {decoder.model_type!r}")
    if spec.projector != "mlp2x_gelu":
        raise _no_form(f"projector {spec.projector!r}")
    if spec.tiling is not None:
        raise _no_form("pictures in tiles")
    if vision.mlp_width == vision.width:  # the loader tells two matrices apart by their shapes
        raise _no_form(f"a vision tower whose mlp_width is its width, {vision.width}")
    if not decoder.has_qkv_bias:
        return decoder
    if decoder.num_heads * decoder.head_dim != decoder.width:
        raise _no_form(
            f"a Qwen2 decoder with {decoder.num_heads} heads of {decoder.head_dim} in a width of "
            f"{decoder.width}"
        )
    if _rope_type(decoder) == "llama3":
        raise _no_form("a Qwen2 decoder with rope_scaling 'llama3'")
    return decoder


def _writer_class() -> type[GGUFWriter]:
    try:
        from gguf import GGUFWriter
    except ImportError as error:
        raise CheckpointError(
            "gguf: the package that writes GGUF is missing; run pip install 'lapilli[gguf]'"
        ) from error
    return GGUFWriter


def _no_form(what: str) -> CheckpointError:
    return CheckpointError(f"{what}: llama.cpp has no form for it; use --to hf")


# What the files say


def _describe(writer: GGUFWriter, type: str, kind: Kind, name: str, license: str) -> None:
    writer.add_type(type)
    if name:
        writer.add_name(name)
    if license:
        writer.add_license(license)
    writer.add_file_type(_FILE_TYPES[kind])
    writer.add_quantization_version(2)


def _describe_decoder(writer: GGUFWriter, spec: DecoderSpec) -> None:
    # There is no window for these architectures; within its length it makes no difference.
    context = min(spec.max_positions, spec.sliding_window or spec.max_positions)
    writer.add_vocab_size(spec.vocab_size)
    writer.add_context_length(context)
    writer.add_embedding_length(spec.width)
    writer.add_block_count(spec.num_layers)
    writer.add_feed_forward_length(spec.mlp_width)
    writer.add_head_count(spec.num_heads)
    writer.add_head_count_kv(spec.num_kv_heads)
    writer.add_key_length(spec.head_dim)
    writer.add_value_length(spec.head_dim)
    writer.add_layer_norm_rms_eps(spec.norm_eps)
    writer.add_rope_dimension_count(spec.head_dim)
    writer.add_rope_freq_base(spec.rope_theta)
    if spec.rope_scaling is not None and _rope_type(spec) == "linear":
        from gguf import RopeScalingType

        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(spec.rope_scaling["factor"]))


def _describe_vision(writer: GGUFWriter, spec: LlavaSpec, processor: Processor) -> None:
    vision, images = spec.vision, processor.images
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type("mlp")
    writer.add_vision_image_size(vision.image_size)
    writer.add_vision_patch_size(vision.patch_size)
    writer.add_vision_embedding_length(vision.width)
    writer.add_vision_feed_forward_length(vision.mlp_width)
    writer.add_vision_projection_dim(spec.decoder.width)
    writer.add_vision_head_count(vision.num_heads)
    writer.add_vision_attention_layernorm_eps(vision.norm_eps)
    writer.add_vision_image_mean(list(images.mean))
    writer.add_vision_image_std(list(images.std))
    # Where no layer is named, versions differ in how many of them they run.
    writer.add_vision_block_count(vision.num_feature_layers)
    writer.add_array("clip.vision.feature_layer", [vision.num_feature_layers])
    writer.add_vision_use_gelu(vision.activation != "quick_gelu")


def _rope_type(spec: DecoderSpec) -> str:
    return str((spec.rope_scaling or {}).get("rope_type", "default"))


# Tensors by their names there


def _decoder_tensors(model: Llava, spec: DecoderSpec, arch: str) -> Tensors:
    tensors: Tensors = {}
    for name, value in model.language_model.state_dict().items():
        if name == "lm_head.weight" and spec.is_tied:
            continue
        if arch == "llama" and ".q_proj." in name:
            value = _interleave(value, spec.num_heads)
        if arch == "llama" and ".k_proj." in name:
            value = _interleave(value, spec.num_kv_heads)
        tensors[_rename(name, _DECODER, _IN_DECODER_LAYER)] = value
    if _rope_type(spec) == "llama3":
        cpu = torch.device("cpu")
        plain = rotary_frequencies(replace(spec, rope_scaling=None), cpu)
        tensors["rope_freqs.weight"] = plain / rotary_frequencies(spec, cpu)
    return tensors


def _interleave(weight: Tensor, num_heads: int) -> Tensor:
    """Reorder the channels of each head, (H * K, D): pairs (k, k + K / 2) become neighbors, which
    is how llama.cpp turns a Llama's pairs; a Qwen2's it turns as we do."""
    halves = weight.unflatten(0, (num_heads, 2, -1))  # (H, 2, K / 2, D)
    return halves.transpose(1, 2).flatten(0, 2)


def _vision_tensors(model: Llava) -> Tensors:
    spec = model.spec.vision
    tensors = _vision_embeddings(dict(model.vision_tower.state_dict()), spec)
    for index, layer in enumerate(model.vision_tower.layers[: spec.num_feature_layers]):
        for name, value in layer.state_dict().items():
            tensors[f"v.blk.{index}.{_replace_start(name, _IN_VISION_LAYER)}"] = value
    for name, value in model.projector.state_dict().items():
        tensors[_replace_start(name, _PROJECTOR)] = value
    return tensors


def _vision_embeddings(weights: Tensors, spec: VisionSpec) -> Tensors:
    """What stands before the first layer; fp32, as sums of it are not rounded in between.

    Of a tower with a class token, the positions are added to what they belong to, and the table is
    zero: since May 2025 llama.cpp puts the class token behind the patches and gives each token the
    position of its place, which is its neighbor's (its issue 25814).
    """
    positions = weights["position_embedding.weight"].float()
    tensors = {"v.patch_embd.weight": weights["patch_embedding.weight"].float()}
    if spec.has_patch_bias:
        tensors["v.patch_embd.bias"] = weights["patch_embedding.bias"].float()
    if spec.has_class_token:
        tensors["v.class_embd"] = weights["class_embedding"].float() + positions[0]
        bias = tensors.get("v.patch_embd.bias", torch.zeros(spec.width))
        tensors["v.patch_embd.bias"] = positions[1:] + bias  # (P, D)
        positions = torch.zeros_like(positions)
    tensors["v.position_embd.weight"] = positions
    if spec.has_pre_norm:
        tensors["v.pre_ln.weight"] = weights["pre_norm.weight"]
        tensors["v.pre_ln.bias"] = weights["pre_norm.bias"]
    return tensors


def _rename(name: str, outside: dict[str, str], in_layer: dict[str, str]) -> str:
    if not name.startswith("layers."):
        return _replace_start(name, outside)
    number, _, inside = name.removeprefix("layers.").partition(".")
    return f"blk.{number}.{_replace_start(inside, in_layer)}"


def _replace_start(name: str, table: dict[str, str]) -> str:
    start = next(start for start in table if name.startswith(start))
    return table[start] + name.removeprefix(start)


# Writing


def _write(writer: GGUFWriter, path: Path, tensors: Tensors, kind: Kind) -> None:
    """Write a file, one tensor in memory at a time."""
    from gguf import GGML_QUANT_SIZES

    try:
        for name, value in tensors.items():
            stored = _stored_type(name, value, kind)
            per_block, block_bytes = GGML_QUANT_SIZES[stored]
            num_bytes = value.numel() // per_block * block_bytes
            writer.add_tensor_info(name, value.shape, np.dtype(np.float32), num_bytes, stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for data in _converted(tensors, kind, path):
            writer.write_tensor_data(data)
    finally:
        writer.close()


def _stored_type(name: str, value: Tensor, kind: Kind) -> GGMLQuantizationType:
    from gguf import GGMLQuantizationType

    is_embedding = name.startswith(("v.patch_embd.", "v.position_embd."))
    if value.ndim != 2 or kind == "f32" or is_embedding:
        return GGMLQuantizationType.F32
    if kind == "q8_0" and value.shape[-1] % _Q8_BLOCK:
        return GGMLQuantizationType.F16
    return GGMLQuantizationType[kind.upper()]


def _converted(tensors: Tensors, kind: Kind, path: Path) -> Iterator[np.ndarray]:
    from gguf.quants import quantize

    for name, value in tensors.items():
        data = value.float().numpy()
        stored = _stored_type(name, value, kind)
        with np.errstate(over="ignore"):
            result = quantize(data, stored)
        if result.dtype == np.float16 and not np.isfinite(result).all():
            raise CheckpointError(f"{path.name}: {name} holds numbers beyond f16; use --type bf16")
        yield np.ascontiguousarray(result)
