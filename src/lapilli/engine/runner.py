"""Runs the model for several answers at once: reads their prompts in chunks, and makes steps."""

# B answers, N new tokens of all of them, V vocabulary, D width, P features of one picture

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lapilli.engine.answer import Answer
from lapilli.engine.pictures import FeatureCache, Opened, Seen
from lapilli.engine.prompt import Content
from lapilli.model.cache import Span
from lapilli.model.foreign import ForeignCache, ForeignDecoder, ForeignStepper
from lapilli.model.llava import Llava
from lapilli.model.matrices import StepMatrices
from lapilli.model.small_cache import Kept, make_cache
from lapilli.model.step import Stepper
from lapilli.model.visual_tokens import choose_tokens
from lapilli.processor.processor import Processor


class Chunk(NamedTuple):
    """So many tokens of an answer that the model reads next."""

    answer: Answer
    num_new: int


class Part(NamedTuple):
    """The tokens of a content from `first` to before `end`."""

    content: Content
    first: int
    end: int

    @property
    def pictures(self) -> list[Opened]:
        """Those that have places among the tokens."""
        return self.content.pictures_between(self.first, self.end)


class Runner:
    """The model, the cache that keeps what it has read, and the pictures that it has seen.

    Args:
        capacity: tokens that the cache holds.
        max_position: positions go up to before this.
        picture_bytes: what features of pictures may take while no answer needs them.
        visual_choice: which features are shown where a picture has more than places; a name in
            `lapilli.model.visual_tokens.CHOICES`.
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
        visual_choice: str,
        kept: Kept | None = None,
    ) -> None:
        self.model = model
        self.processor = processor
        self.max_position = max_position
        decoder = model.language_model
        self.cache: Any = (  # goes with the stepper
            ForeignCache(capacity, model.device)
            if isinstance(decoder, ForeignDecoder)
            else make_cache(decoder.spec, capacity, model.device, model.dtype, kept)
        )
        self.features = FeatureCache(picture_bytes)
        self.visual_choice = visual_choice
        self.num_encoded = 0

    @cached_property
    def _stepper(self) -> Any:
        decoder = self.model.language_model
        if isinstance(decoder, ForeignDecoder):
            return ForeignStepper(decoder)
        return Stepper(StepMatrices(decoder), self.max_position)

    @torch.inference_mode()
    def read(self, chunks: Sequence[Chunk]) -> Tensor:
        """Take parts of prompts into the cache.

        Returns:
            (B, V) logits of what follows each part.

        Raises:
            PromptError: features do not fit their places.
        """
        model, decoder = self.model, self.model.language_model
        parts = [
            Part(_content(answer), answer.num_read, answer.num_read + num_new)
            for answer, num_new in chunks
        ]
        seen = self._see([picture for part in parts for picture in part.pictures])
        positions = [part.content.positions(part.first, part.end, seen) for part in parts]
        hidden = decoder(
            self._embed(parts, seen),
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
        positions = [answer.num_read + _content(answer).num_hidden for answer, _ in chunks]
        view = self.cache.step([_span(chunk) for chunk in chunks])
        return self._stepper(tokens, torch.tensor(positions, device=device), view)

    def _embed(self, parts: Sequence[Part], seen: Mapping[bytes, Seen]) -> Tensor:
        """Embeddings of parts side by side, pictures' features in their places; (1, N, D)."""
        ids = [token for part in parts for token in part.content.ids[part.first : part.end]]
        embeds = self.model.embed_words(torch.tensor(ids, device=self.model.device))  # (N, D)
        start = 0  # of a part
        for part in parts:
            for picture in part.pictures:
                low = max(part.first, picture.start)
                high = min(part.end, picture.start + picture.num_places)
                features = seen[picture.digest].features[low - picture.start : high - picture.start]
                embeds[start + low - part.first : start + high - part.first] = features
            start += part.end - part.first
        return embeds[None]

    def _see(self, pictures: Sequence[Opened]) -> dict[bytes, Seen]:
        """What is seen of pictures, by their digests; what is not kept is encoded together."""
        wanted = {picture.digest: picture for picture in pictures}
        seen = {key: known for key in wanted if (known := self.features.get(key)) is not None}
        new = [picture for key, picture in wanted.items() if key not in seen]
        if new:
            views = self.processor.see([(picture.image, picture.is_cut) for picture in new])
            made = self.model.image_features(*views.to(self.model.device, self.model.dtype))
            self.num_encoded += len(new)
            parts = made.split([picture.num_features for picture in new])
            for picture, features in zip(new, parts, strict=True):
                seen[picture.digest] = self._shown(features, picture.num_places)
                self.features.put(picture.digest, seen[picture.digest])
        return seen

    def _shown(self, features: Tensor, count: int) -> Seen:
        """The features that the language model sees, apart from those of other pictures."""
        if count == len(features):
            return Seen(features.clone())
        kept = choose_tokens(features, count, self.visual_choice)
        return Seen(features[kept], kept)


def _span(chunk: Chunk) -> Span:
    return Span(chunk.answer.stretches, chunk.answer.num_read, chunk.num_new)


def _content(answer: Answer) -> Content:
    assert answer.content is not None
    return answer.content
