"""One vision transformer: CLIP, SigLIP and our own small tower by configuration."""

# B batch, P patches, T tokens (patches and the class token), D width, H heads

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lapilli.model.attention import attend
from lapilli.model.spec import Activation, VisionSpec


def quick_gelu(x: Tensor) -> Tensor:
    """The sigmoid approximation of GELU that CLIP was trained with."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": quick_gelu,
}


class Attention(nn.Module):
    """Full self-attention among the tokens of a picture."""

    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        self.num_heads = spec.num_heads
        self.q_proj = nn.Linear(spec.width, spec.width)
        self.k_proj = nn.Linear(spec.width, spec.width)
        self.v_proj = nn.Linear(spec.width, spec.width)
        self.out_proj = nn.Linear(spec.width, spec.width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        query, key, value = (
            proj(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, H, T, D / H)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(attend(query, key, value, mask=None).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Attention and a two-layer perceptron, each behind a layer norm and beside a shortcut."""

    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(spec.width, spec.norm_eps)
        self.attention = Attention(spec)
        self.norm2 = nn.LayerNorm(spec.width, spec.norm_eps)
        self.fc1 = nn.Linear(spec.width, spec.mlp_width)
        self.fc2 = nn.Linear(spec.mlp_width, spec.width)
        self.activation = ACTIVATIONS[spec.activation]

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        x = x + self.attention(self.norm1(x))
        return x + self.fc2(self.activation(self.fc1(self.norm2(x))))


class VisionTransformer(nn.Module):
    """Cuts a picture into patches and lets them look at each other.

    Source: Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words"; Radford et al. 2021 (CLIP).
    """

    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        self.spec = spec
        self.patch_embedding = nn.Conv2d(
            3, spec.width, spec.patch_size, spec.patch_size, bias=spec.has_patch_bias
        )
        num_tokens = spec.num_features + spec.has_class_token
        self.position_embedding = nn.Embedding(num_tokens, spec.width)
        if spec.has_class_token:
            self.class_embedding = nn.Parameter(torch.zeros(spec.width))
        self.pre_norm = (
            nn.LayerNorm(spec.width, spec.norm_eps) if spec.has_pre_norm else nn.Identity()
        )
        self.layers = nn.ModuleList(Layer(spec) for _ in range(spec.num_layers))
        self.post_norm = nn.LayerNorm(spec.width, spec.norm_eps)

    def embed(self, pixels: Tensor) -> Tensor:
        """Return the tokens before the first layer: (B, 3, S, S) to (B, T, D)."""
        x = self.embed_patches(pixels)
        if self.spec.has_class_token:
            first = self.class_embedding.to(x.dtype).expand(len(x), 1, -1)
            x = torch.cat([first, x], 1)  # (B, 1 + P, D)
        return self.pre_norm(x + self.position_embedding.weight)

    def embed_patches(self, pixels: Tensor) -> Tensor:
        """Return (B, P, D); pixels at the right and lower edge that fill no patch are left out."""
        grid, size = self.spec.grid, self.spec.patch_size
        pixels = pixels[:, :, : grid * size, : grid * size]
        patches = pixels.unflatten(2, (grid, size)).unflatten(4, (grid, size))
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # (B, P, 3 * size^2)
        # The strided convolution as a matrix product: its backward pass is far faster on a CPU.
        weight = self.patch_embedding.weight.flatten(1)
        return F.linear(patches.to(weight.dtype), weight, self.patch_embedding.bias)

    def patches(self, x: Tensor) -> Tensor:
        """Drop the class token, where there is one: (B, T, D) to (B, P, D)."""
        return x[:, 1:] if self.spec.has_class_token else x

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the features of each patch at `spec.feature_layer`.

        Args:
            pixels: (B, 3, S, S), normalised.

        Returns:
            (B, P, D), row by row.
        """
        x = self.embed(pixels)
        for layer in self.layers[: self.spec.num_feature_layers]:
            x = layer(x)
        return self.patches(x)
