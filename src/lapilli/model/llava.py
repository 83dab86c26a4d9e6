"""LLaVA: a vision tower and a projector write picture features among a decoder's embeddings."""

# B batch, T tokens (picture places included), D width, V vocabulary, N pictures, P features of one
# picture, S side in pixels

from __future__ import annotations

import torch
from torch import Tensor, nn

from lapilli.errors import PromptError
from lapilli.model.decoder import Decoder, KVCache
from lapilli.model.masks import packed_mask
from lapilli.model.projectors import PROJECTORS
from lapilli.model.spec import LlavaSpec
from lapilli.model.vit import VisionTransformer


def place_features(embeds: Tensor, is_image: Tensor, features: Tensor) -> Tensor:
    """Return `embeds` with image features written over their placeholders.

    Args:
        embeds: (B, T, D) text embeddings, unchanged.
        is_image: (B, T) bool, exactly N * P true.
        features: (N * P, D), in reading order.

    Raises:
        PromptError: the number of features differs from the number of places.

    Source: Liu et al. 2023, "Visual Instruction Tuning", section 4.1.
    """
    num_places = int(is_image.sum())
    if num_places != len(features):
        raise PromptError(
            f"{num_places} picture places in the prompt, {len(features)} picture features. "
            "Give as many pictures as the prompt has places for."
        )
    return embeds.masked_scatter(is_image[..., None], features.to(embeds.dtype))


class Llava(nn.Module):
    """Vision tower, projector, decoder.

    Source: Liu et al. 2023, "Visual Instruction Tuning" and "Improved Baselines with Visual
    Instruction Tuning".
    """

    def __init__(self, spec: LlavaSpec) -> None:
        super().__init__()
        self.spec = spec
        self.vision_tower = VisionTransformer(spec.vision)
        self.projector = PROJECTORS[spec.projector](spec.vision.width, spec.decoder.width)
        self.language_model = Decoder(spec.decoder)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.language_model.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.language_model.embed_tokens.weight.dtype

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """Return projected features: (N, 3, S, S) to (N, P, D)."""
        return self.projector(self.vision_tower(pixel_values))

    def embed(self, input_ids: Tensor, pixel_values: Tensor | None = None) -> Tensor:
        """Return (B, T, D) embeddings of the words, with the pictures' features in their places.

        Raises:
            PromptError: places and pictures do not match.
        """
        is_image = input_ids == self.spec.image_token_id
        embeds = self.language_model.embed_tokens(input_ids.masked_fill(is_image, 0))
        if pixel_values is None:
            features = embeds.new_empty(0, embeds.shape[-1])
        else:
            features = self.encode_images(pixel_values).flatten(0, 1)
        return place_features(embeds, is_image, features)

    def hidden(
        self,
        input_ids: Tensor,
        positions: Tensor,
        groups: Tensor,
        branches: Tensor | None = None,
        pixel_values: Tensor | None = None,
    ) -> Tensor:
        """Return (B, T, D) hidden states before the head, for losses at chosen positions.

        Args: as in `lapilli.inputs.Inputs`.
        """
        embeds = self.embed(input_ids, pixel_values)
        return self.language_model(embeds, positions, packed_mask(groups, branches))

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        groups: Tensor,
        branches: Tensor | None = None,
        pixel_values: Tensor | None = None,
    ) -> Tensor:
        """Return logits (B, T, V); arguments as in `lapilli.inputs.Inputs`."""
        hidden = self.hidden(input_ids, positions, groups, branches, pixel_values)
        return self.language_model.lm_head(hidden)

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        """Return an empty cache for `batch` rows of up to `capacity` tokens."""
        return KVCache(self.spec.decoder, batch, capacity, self.device, self.dtype)
