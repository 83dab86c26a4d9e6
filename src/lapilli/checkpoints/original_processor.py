"""Words and turns of the code that LLaVA was published with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from lapilli.checkpoints.hf_processor import begin_word, read_template, special_word
from lapilli.checkpoints.original_spec import Family
from lapilli.checkpoints.texts import read_json
from lapilli.errors import CheckpointError
from lapilli.processor.builtin import TEMPLATES
from lapilli.processor.images import ImageSettings
from lapilli.processor.processor import Processor, PromptSettings
from lapilli.processor.tokenizer import load_tokenizer

IMAGE_TOKEN = "<image>"
"""What the original splits prompts at; its tokenizers do not know it."""

_CONTROLS = ("<|im_start|>", "<|im_end|>")
"""What SentencePiece has for plain words where it knows them: whoever types them must not be read
as a template."""

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


def read_processor(
    folder: Path,
    family: Family,
    images: ImageSettings,
    *,
    features_per_image: int,
    max_tokens: int,
) -> Processor:
    """Return what prepares inputs for the folder's model.

    The id that keeps a picture's place is the first beyond the tokenizer's own.

    Raises:
        CheckpointError: a file is missing or damaged, or the tokenizer's kind is not supported.
    """
    about_words = read_json(folder / "tokenizer_config.json")
    tokenizer = read_tokenizer(folder, about_words)
    image_token = _image_token(about_words)
    controls = [word for word in _CONTROLS if tokenizer.token_to_id(word) is not None]
    tokenizer.add_special_tokens(
        [AddedToken(word, special=True, normalized=False) for word in (*controls, image_token)]
    )
    name = _template(family, tokenizer)
    end_of_turn = TEMPLATES[name].end_of_turn
    chat_template = read_template(folder, about_words)
    if chat_template is not None and "image" not in chat_template:
        chat_template = None  # the language model's own, from before it could see
    if chat_template is not None:
        end_of_turn = special_word(about_words, "eos_token") or end_of_turn
    prompt = PromptSettings(
        features_per_image=features_per_image,
        image_token=image_token,
        end_of_turn=end_of_turn,
        bos_token=begin_word(tokenizer, about_words, chat_template),
        template=name,
        max_tokens=max_tokens,
        splits_at_images=True,
    )
    return Processor(tokenizer, images, prompt, chat_template)


def read_tokenizer(folder: Path, about_words: Mapping[str, Any]) -> Tokenizer:
    """Return a folder's tokenizer, converted from `tokenizer.model` where there is no
    `tokenizer.json`.

    Raises:
        CheckpointError: both are missing, one is damaged, or the packages that convert are missing.
    """
    path = folder / "tokenizer.model"
    if (folder / "tokenizer.json").exists() or not path.exists():
        return load_tokenizer(folder / "tokenizer.json")
    try:
        for needed in ("sentencepiece", "google.protobuf"):
            import_module(needed)
    except ImportError as error:
        raise CheckpointError(
            f"{path}: needs sentencepiece and protobuf; install lapilli[original]"
        ) from error
    from transformers import LlamaTokenizer

    try:
        converted = LlamaTokenizer.from_pretrained(folder, local_files_only=True)
        content = json.loads(converted.backend_tokenizer.to_str())
    except Exception as error:  # the library raises whatever its parsers do
        raise CheckpointError(f"{path}: damaged ({type(error).__name__}); copy it again") from error
    if about_words.get("legacy", True):
        # Each stretch between special tokens begins with a space, not the first alone.
        steps = [
            {"type": "Prepend", "prepend": _SPACE},
            {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE},
        ]
        content["normalizer"] = {"type": "Sequence", "normalizers": steps}
        content["pre_tokenizer"] = None
    return Tokenizer.from_str(json.dumps(content))


def _image_token(about_words: Mapping[str, Any]) -> str:
    extra = about_words.get("extra_special_tokens")
    word = special_word(extra, "image_token") if isinstance(extra, Mapping) else ""
    return word or IMAGE_TOKEN


def _template(family: Family, tokenizer: Tokenizer) -> str:
    """How the original wrote conversations for such a language model."""
    if family == "mistral":
        return "mistral_instruct"
    if family == "qwen2":
        return "qwen"
    if tokenizer.token_to_id("<|eot_id|>") is not None:
        return "llama_3"
    return "vicuna_v1" if tokenizer.token_to_id("<|im_end|>") is None else "chatml_direct"
