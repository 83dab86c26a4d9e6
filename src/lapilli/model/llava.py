"""LLaVA: a vision tower and a projector write picture features among a decoder's embeddings."""

# B batch, T tokens (picture places included), D width, V vocabulary, N pictures, M views of them
# (whole pictures and tiles), P features of one view, F features of all pictures, S side in pixels

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lapilli.errors import PromptError
from lapilli.model.decoder import Decoder
from lapilli.model.foreign import ForeignDecoder
from lapilli.model.masks import packed_mask
from lapilli.model.projectors import PROJECTORS
from lapilli.model.spec import ForeignSpec, LlavaSpec
from lapilli.model.vit import VisionTransformer
from lapilli.tiling import Size, Tiling


def place_features(embeds: Tensor, is_image: Tensor, features: Tensor) -> Tensor:
    """Return `embeds` with image features written over their placeholders.

    Args:
        embeds: (B, T, D) text embeddings, unchanged.
        is_image: (B, T) bool, exactly F true.
        features: (F, D), in reading order.

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


def pack_views(views: Tensor, size: Size, tiling: Tiling, newline: Tensor) -> Tensor:
    """Return the features of one picture in the order that the language model reads.

    Args:
        views: (number of views, P, D), of the whole and then of the tiles, if it is cut.
        size: height and width of the picture, in pixels.
        newline: (D,), what ends a row of the tiles' features, or a picture that is not cut.

    Returns:
        (`tiling.num_features(size)`, D), or (P + 1, D) for a single view.
    """
    if len(views) == 1:
        return torch.cat([views[0], newline[None]])
    # The tiles side by side, as one grid of features
    grid = views[1:].unflatten(0, tiling.grid(size)).unflatten(2, (tiling.tile_features, -1))
    grid = grid.transpose(1, 2).flatten(2, 3).flatten(0, 1)  # (rows, columns, D)
    rows, columns = tiling.unpadded(size)
    top, left = (len(grid) - rows) // 2, (grid.shape[1] - columns) // 2
    grid = grid[top : top + rows, left : left + columns]
    if (rows, columns) != (shrunk := tiling.shrunk(size)):
        channels_first = grid.permute(2, 0, 1)[None]
        grid = F.interpolate(channels_first, shrunk, mode="bilinear")[0].permute(1, 2, 0)
    lines = torch.cat([grid, newline.expand(len(grid), 1, -1)], 1)
    return torch.cat([views[0], lines.flatten(0, 1)])


class Llava(nn.Module):
    """Vision tower, projector, decoder; and a newline where pictures are cut.

    Source: Liu et al. 2023, "Visual Instruction Tuning" and "Improved Baselines with Visual
    Instruction Tuning"; Liu et al. 2024, "LLaVA-NeXT".
    """

    def __init__(self, spec: LlavaSpec) -> None:
        super().__init__()
        self.spec = spec
        self.vision_tower = VisionTransformer(spec.vision)
        self.projector = PROJECTORS[spec.projector](spec.vision.width, spec.decoder.width)
        self.language_model: Decoder | ForeignDecoder = (
            ForeignDecoder(spec.decoder)
            if isinstance(spec.decoder, ForeignSpec)
            else Decoder(spec.decoder)
        )
        if spec.tiling is not None:
            width = spec.decoder.width
            self.image_newline = nn.Parameter(torch.randn(width) / width**0.5)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.language_model.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.language_model.embed_tokens.weight.dtype

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """Return projected features: (M, 3, S, S) to (M, P, D)."""
        return self.projector(self.vision_tower(pixel_values))

    def image_features(
        self,
        pixel_values: Tensor,
        image_sizes: Tensor | None = None,
        num_views: Tensor | None = None,
    ) -> Tensor:
        """Return (F, D) features of all pictures, in reading order.

        Args: as in `lapilli.inputs.Inputs`.

        Raises:
            PromptError: the model cuts pictures, and the views are not those of their sizes.
        """
        tiling = self.spec.tiling
        if tiling is None:
            return self.encode_images(pixel_values).flatten(0, 1)
        if image_sizes is None or num_views is None:
            raise PromptError(
                "this model cuts pictures into tiles. Give image_sizes and num_views beside "
                "pixel_values, as the processor makes them."
            )
        counts = num_views.tolist()
        sizes: list[Size] = [(height, width) for height, width in image_sizes.tolist()]
        is_complete = (
            len(counts) == len(sizes)
            and sum(counts) == len(pixel_values)
            and all(n in (1, tiling.num_views(s)) for n, s in zip(counts, sizes, strict=True))
        )
        if not is_complete:
            raise PromptError(
                f"{len(pixel_values)} views, counted as {counts}, do not show pictures of the "
                f"sizes {sizes}. Give pixel_values, image_sizes and num_views together, as the "
                "processor makes them."
            )
        views = self.encode_images(pixel_values).split(counts)
        return torch.cat(
            [
                pack_views(part, size, tiling, self.image_newline)
                for part, size in zip(views, sizes, strict=True)
            ]
        )

    def embed_words(self, input_ids: Tensor) -> Tensor:
        """Return embeddings (..., D) of ids (...); those in pictures' places mean nothing."""
        is_image = input_ids == self.spec.image_token_id
        return self.language_model.embed_tokens(input_ids.masked_fill(is_image, 0))

    def embed(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        num_views: Tensor | None = None,
    ) -> Tensor:
        """Return (B, T, D) embeddings of the words, with the pictures' features in their places.

        Args: as in `lapilli.inputs.Inputs`.

        Raises:
            PromptError: places and pictures do not match.
        """
        is_image = input_ids == self.spec.image_token_id
        embeds = self.embed_words(input_ids)
        if pixel_values is None:
            features = embeds.new_empty(0, embeds.shape[-1])
        else:
            features = self.image_features(pixel_values, image_sizes, num_views)
        return place_features(embeds, is_image, features)

    def hidden(
        self,
        input_ids: Tensor,
        positions: Tensor,
        groups: Tensor,
        branches: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        num_views: Tensor | None = None,
    ) -> Tensor:
        """Return (B, T, D) hidden states before the head, for losses at chosen positions.

        Args: as in `lapilli.inputs.Inputs`.
        """
        embeds = self.embed(input_ids, pixel_values, image_sizes, num_views)
        return self.language_model(embeds, positions, packed_mask(groups, branches))

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        groups: Tensor,
        branches: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        num_views: Tensor | None = None,
    ) -> Tensor:
        """Return logits (B, T, V); arguments as in `lapilli.inputs.Inputs`."""
        hidden = self.hidden(
            input_ids, positions, groups, branches, pixel_values, image_sizes, num_views
        )
        return self.language_model.lm_head(hidden)
