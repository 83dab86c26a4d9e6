"""Whose way a model goes where `transformers` and the code that LLaVA was published with differ."""

from __future__ import annotations

from dataclasses import replace

from lapilli.model.llava import Llava
from lapilli.processor.images import Mode
from lapilli.processor.processor import Processor
from lapilli.tiling import Parity


def follow(model: Llava, processor: Processor, parity: Parity) -> tuple[Llava, Processor]:
    """Return a model that sees pictures and reads prompts another way; its weights are the same.

    Pictures that are not cut are padded to a square by "original", and seen as the tower alone
    would see them by "hf".
    """
    images = processor.images
    if images.tiling is not None:
        images = replace(images, tiling=images.tiling.following(parity))
        model.spec = replace(model.spec, tiling=images.tiling)
    else:
        images = replace(images, mode="pad" if parity == "original" else own_mode(model))
    prompt = replace(processor.prompt, splits_at_images=parity == "original")
    tokenizer = processor.words.tokenizer
    return model, Processor(tokenizer, images, prompt, processor.chat_template)


def own_mode(model: Llava) -> Mode:
    """Return how a picture becomes a square for the tower alone, as it was published."""
    return "crop" if model.spec.vision.has_class_token else "squash"
