"""How turns are written for the model of a Hugging Face folder."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lapilli.checkpoints.texts import read_json, read_text
from lapilli.errors import CheckpointError
from lapilli.processor.builtin import TEMPLATES, jinja_source
from lapilli.processor.processor import Processor

# end of turn: the template of a decoder, else that of all others
_USUAL = {
    "</s>": {"mistral": "mistral_instruct", "": "vicuna_v1"},
    "<|im_end|>": {"qwen2": "qwen", "": "chatml_direct"},
    "<|eot_id|>": {"": "llama_3"},
}
_CERTAIN = ("qwen", "llama_3")
"""Of the rest, LLaVA trained several on decoders and tokenizers that are alike: Llama 2 chats with
`[INST]`, and BakLLaVA is a Mistral that was taught as Vicuna."""


def read_template(folder: Path, about_words: Mapping[str, Any]) -> str | None:
    """Return the folder's chat template, from whichever of four places holds one."""
    path = folder / "chat_template.jinja"
    if path.exists():
        return read_text(path)
    beside = (folder / name for name in ("chat_template.json", "processor_config.json"))
    for holder in [*(read_json(path) for path in beside if path.exists()), about_words]:
        template = holder.get("chat_template")
        if isinstance(template, list):  # several, by name
            rows = [row for row in template if isinstance(row, Mapping)]
            template = {row.get("name"): row.get("template") for row in rows}.get("default")
        if isinstance(template, str):
            return template
    return None


def usual_template(folder: Path, end_of_turn: str, decoder: str) -> str:
    """Return the name of the built-in template for a folder that has none of its own.

    Where other models with the same decoder and tokenizer are asked otherwise, a warning says so.

    Args:
        decoder: the `model_type` of the language model.

    Raises:
        CheckpointError: no built-in template ends its turns so.
    """
    path = folder / "chat_template.jinja"
    by_decoder = _USUAL.get(end_of_turn)
    if by_decoder is None:
        raise CheckpointError(f"{path}: missing; copy it beside config.json")
    name = by_decoder.get(decoder, by_decoder[""])
    if name not in _CERTAIN:
        known = [other for other, it in TEMPLATES.items() if it.end_of_turn == end_of_turn]
        warnings.warn(
            f"{path}: missing; turns are written as {name}, one of {', '.join(known)}. If answers "
            "are poor, put the model's own there",
            stacklevel=2,
        )
    return name


def template_source(processor: Processor) -> str:
    """Return a processor's template in Jinja.

    Raises:
        CheckpointError: it has none.
    """
    source = processor.chat_template or jinja_source(processor.prompt.template)
    if source is None:
        name = processor.prompt.template
        raise CheckpointError(f"template {name!r}: has no form in Jinja; use vicuna_v1")
    return source
