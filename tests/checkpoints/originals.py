"""Folders as the code that LLaVA was published with writes them, made of random models of
`transformers` without a line of ours."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    MistralConfig,
    Qwen2Config,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from lapilli.processor.tokenizer import train_tokenizer

SIDE, GRID, CONTEXT, VOCAB = 30, 4, 2048, 330
PLACE = 5
"""The id that keeps a picture's place in their models: a byte that no prompt has."""
PINPOINTS = [[30, 60], [60, 30], [60, 60], [90, 90], [90, 30], [30, 90]]
"""Heights and widths."""

TOWERS = {"clip": CLIPVisionConfig, "siglip": SiglipVisionConfig}
DECODERS = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config}
ARCHITECTURES = {
    "llama": "LlavaLlamaForCausalLM",
    "mistral": "LlavaMistralForCausalLM",
    "qwen2": "LlavaQwenForCausalLM",
}
TEXTS = [
    "A chat between a curious user and an artificial intelligence assistant.",
    "How many red circles are there? What is this? USER: ASSISTANT: yes no one two three",
]


@dataclass
class Original:
    """A model of theirs, and the original's folder of the same weights."""

    theirs: Any
    folder: Path

    def rewrite(self, **changes: Any) -> None:
        """Change keys of `config.json`; None takes one out."""
        path = self.folder / "config.json"
        config = json.loads(path.read_text()) | changes
        kept = {key: value for key, value in config.items() if value is not None}
        path.write_text(json.dumps(kept))


def make_theirs(name: str, *, is_cut: bool, num_layers: int, feature_layer: int) -> Any:
    """A random model, by names of its parts such as "clip, llama, linear"."""
    tower, decoder, *tags = name.split(", ")
    vision = TOWERS[tower](
        hidden_size=32, intermediate_size=48, num_attention_heads=2, image_size=SIDE, patch_size=7,
        num_hidden_layers=num_layers,
    )  # fmt: skip
    text = DECODERS[decoder](
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=CONTEXT,
        tie_word_embeddings="tied" in tags,
    )  # fmt: skip
    shared: dict[str, Any] = {
        "vision_config": vision, "text_config": text, "image_token_index": PLACE,
        "vision_feature_layer": feature_layer, "tie_word_embeddings": "tied" in tags,
        "vision_feature_select_strategy": "default" if tower == "clip" else "full",
    }  # fmt: skip
    torch.manual_seed(0)
    if is_cut:
        config = LlavaNextConfig(**shared, image_grid_pinpoints=PINPOINTS)
        theirs: Any = LlavaNextForConditionalGeneration(config)
    else:
        theirs = LlavaForConditionalGeneration(LlavaConfig(**shared))
    if "linear" in tags:
        theirs.model.multi_modal_projector = nn.Linear(32, 32)
    for key, parameter in theirs.named_parameters():
        # Small embeddings and strong layers: or else each token would be followed by itself.
        scale = 0.05 if "embed_tokens" in key else 0.25
        nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, scale)
    return theirs.eval()


def original_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names that the original gives what versions 5 of `transformers` hold in memory."""
    renamed = {}
    for name, value in weights.items():
        for theirs, originals in (
            ("model.vision_tower.vision_model.", "model.vision_tower.vision_tower.vision_model."),
            ("model.vision_tower.", "model.vision_tower.vision_tower.vision_model."),
            ("model.multi_modal_projector.linear_1.", "model.mm_projector.0."),
            ("model.multi_modal_projector.linear_2.", "model.mm_projector.2."),
            ("model.multi_modal_projector.", "model.mm_projector."),
            ("model.language_model.", "model."),
        ):
            if name.startswith(theirs):
                name = originals + name.removeprefix(theirs)
                break
        renamed[name] = value.contiguous().clone()
    return renamed


def train_sentencepiece(path: Path, *controls: str) -> None:
    """A tokenizer as Llama has it, with bytes for what it does not know."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 20), model_writer=written, vocab_size=VOCAB,
        model_type="bpe", byte_fallback=True, normalization_rule_name="identity",
        character_coverage=1.0, remove_extra_whitespaces=False, minloglevel=2,
        user_defined_symbols=list(controls),
    )  # fmt: skip
    path.write_bytes(written.getvalue())


def write_words(folder: Path, decoder: str, *, legacy: bool = True) -> None:
    """The tokenizer's files: Llama's and Mistral's are SentencePiece's alone."""
    about: dict[str, Any]
    if decoder == "qwen2":
        tokenizer = train_tokenizer(TEXTS, 300)
        tokenizer.add_special_tokens(
            [AddedToken(word, normalized=False) for word in ("<|im_start|>", "<|im_end|>")]
        )
        about = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>"}
        content = json.loads(tokenizer.to_str())
        place = tokenizer.token_to_id("<image>")
        # The original's tokenizers have no such word.
        content["added_tokens"] = [row for row in content["added_tokens"] if row["id"] != place]
        content["model"]["vocab"]["<nothing>"] = content["model"]["vocab"].pop("<image>")
        (folder / "tokenizer.json").write_text(json.dumps(content))
    else:
        train_sentencepiece(folder / "tokenizer.model")
        about = {
            "tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False,
            "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "legacy": legacy,
            "chat_template": "{{ messages[0]['content'] }}",  # of a model that cannot see
        }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(about))


def write_tower(folder: Path, tower: str, theirs: Any, *, num_layers: int) -> None:
    """A tower's own folder; without weights where `theirs` is None."""
    folder.mkdir()
    config = TOWERS[tower](
        hidden_size=32, intermediate_size=48, num_attention_heads=2, image_size=SIDE, patch_size=7,
        num_hidden_layers=num_layers,
    )  # fmt: skip
    config.save_pretrained(folder)
    if theirs is not None:
        kind = CLIPVisionModel if tower == "clip" else SiglipVisionModel
        model = kind(config)
        loaded = model.load_state_dict(theirs.model.vision_tower.state_dict(), strict=False)
        assert not loaded.unexpected_keys
        model.save_pretrained(folder)
    if tower == "clip":
        CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SIDE).save_pretrained(folder)
    else:
        SiglipImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)


def make_original(
    place: Path, name: str, *, is_cut: bool = False, is_inside: bool = True, **changes: Any
) -> Original:
    """An original folder, with the tower's beside it.

    Args:
        name: of the parts, as "clip, llama, linear".
        is_inside: the tower's weights lie in the model's files.
        changes: to `config.json`; None takes a key out.
    """
    tower, decoder, *tags = name.split(", ")
    is_clip = tower == "clip"
    # The original deletes the last of SigLIP's layers: its files hold what is left.
    theirs = make_theirs(
        name,
        is_cut=is_cut,
        num_layers=4 if is_clip or not is_inside else 3,
        feature_layer=-1 if not is_clip and is_inside else -2,
    )
    folder = place / "llava"
    folder.mkdir(parents=True)
    write_tower(place / "tower", tower, None if is_inside else theirs, num_layers=4)
    write_words(folder, decoder)
    weights = original_names(theirs.state_dict())
    if "tied" in tags:
        del weights["lm_head.weight"]
    if not is_inside:
        weights = {n: v for n, v in weights.items() if not n.startswith("model.vision_tower.")}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = theirs.config.text_config.to_dict() | {
        "architectures": [ARCHITECTURES[decoder]],
        "model_type": f"llava_{decoder.removesuffix('2')}",
        "mm_vision_tower": "../tower",
        "mm_hidden_size": 32,
        "mm_projector_type": "linear" if "linear" in tags else "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": "anyres" if is_cut else "pad",
        "mm_patch_merge_type": "spatial_unpad" if is_cut else "flat",
        "image_grid_pinpoints": [[width, height] for height, width in PINPOINTS],
        "tune_mm_mlp_adapter": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    made = Original(theirs, folder)
    made.rewrite(**changes)
    return made
