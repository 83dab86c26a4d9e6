"""Runs the model for several answers at once: reads their prompts in chunks, and makes steps."""

# B answers, N new tokens of all of them, V vocabulary, D width, P features of one picture

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from lapilli.engine.answer import Answer
from lapilli.engine.pictures import FeatureCache, Opened
from lapilli.engine.prompt import Content
from lapilli.model.cache import Span
from lapilli.model.llava import Llava
from lapilli.model.matrices import StepMatrices
from lapilli.model.small_cache import Kept, make_cache
from lapilli.model.step import Stepper
from lapilli.processor.processor import Processor


class Chunk(NamedTuple):
    """So many tokens of an answer that the model reads next."""

    answer: Answer
    num_new: int


class Runner:
    """The model, the cache that keeps what it has read, and the pictures that it has seen.

    Args:
        capacity: tokens that the cache holds.
        max_position: positions go up to before this.
        picture_bytes: what features of pictures may take while no answer needs them.
        kept: how keys and values are kept; None for the type that the model computes in.
    """

    def __init__(
        self,
        model: Llava,
        processor: Processor,
        *,
        capacity: int,
        max_position: int,
        picture_bytes: int,
        kept: Kept | None = None,
    ) -> None:
        self.model = model
        self.processor = processor
        self.max_position = max_position
        self.cache = make_cache(model.spec.decoder, capacity, model.device, model.dtype, kept)
        self.features = FeatureCache(picture_bytes)
        self.num_encoded = 0

    @cached_property
    def _stepper(self) -> Stepper:
        return Stepper(StepMatrices(self.model.language_model), self.max_position)

    @torch.inference_mode()
    def read(self, chunks: Sequence[Chunk]) -> Tensor:
        """Take parts of prompts into the cache.

        Returns:
            (B, V) logits of what follows each part.

        Raises:
            PromptError: features do not fit their places.
        """
        model, decoder = self.model, self.model.language_model
        embeds = self._embed(chunks)
        positions = [
            torch.arange(answer.num_read, answer.num_read + num_new) for answer, num_new in chunks
        ]
        hidden = decoder(
            embeds,
            torch.cat(positions)[None].to(model.device),
            None,
            self.cache.read([_span(chunk) for chunk in chunks]),
        )
        ends = torch.tensor([num_new for _, num_new in chunks], device=model.device).cumsum(0)
        return decoder.lm_head(hidden[0, ends - 1])

    @torch.inference_mode()
    def step(self, chunks: Sequence[Chunk]) -> Tensor:
        """Take the last token of each answer into the cache, a chunk of one token; return (B, V)
        logits of the next."""
        device = self.model.device
        tokens = torch.tensor([_content(answer).ids[-1] for answer, _ in chunks], device=device)
        positions = torch.tensor([answer.num_read for answer, _ in chunks], device=device)
        view = self.cache.step([_span(chunk) for chunk in chunks])
        return self._stepper(tokens, positions, view)

    def _embed(self, chunks: Sequence[Chunk]) -> Tensor:
        """Embeddings of all new tokens side by side, pictures' features in their places;
        (1, N, D)."""
        model = self.model
        shown = [
            _content(answer).pictures_between(answer.num_read, answer.num_read + num_new)
            for answer, num_new in chunks
        ]
        features = self._see([picture for pictures in shown for picture in pictures])
        ids = [
            _content(answer).ids[answer.num_read : answer.num_read + num_new]
            for answer, num_new in chunks
        ]
        flat = torch.tensor([token for part in ids for token in part], device=model.device)
        embeds = model.embed_words(flat)  # (N, D)
        start = 0
        for (answer, num_new), pictures in zip(chunks, shown, strict=True):
            first, end = answer.num_read, answer.num_read + num_new
            for picture in pictures:
                low, high = max(first, picture.start), min(end, picture.start + picture.count)
                part = features[picture.digest][low - picture.start : high - picture.start]
                embeds[start + low - first : start + high - first] = part
            start += num_new
        return embeds[None]

    def _see(self, pictures: Sequence[Opened]) -> dict[bytes, Tensor]:
        """The (P, D) features of pictures by their digests; those not kept are made together."""
        wanted = {picture.digest: picture for picture in pictures}
        found = {key: self.features.get(key) for key in wanted}
        new = [wanted[key] for key, features in found.items() if features is None]
        if new:
            views = self.processor.see([(picture.image, picture.is_cut) for picture in new])
            made = self.model.image_features(*views.to(self.model.device, self.model.dtype))
            parts = made.split([picture.count for picture in new])
            self.num_encoded += len(new)
            for picture, features in zip(new, parts, strict=True):
                found[picture.digest] = features
                self.features.put(picture.digest, features.clone())
        return {key: features for key, features in found.items() if features is not None}


def _span(chunk: Chunk) -> Span:
    return Span(chunk.answer.stretches, chunk.answer.num_read, chunk.num_new)


def _content(answer: Answer) -> Content:
    assert answer.content is not None
    return answer.content
