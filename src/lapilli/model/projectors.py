"""Connectors from vision features to the decoder's embedding space."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from lapilli.model.spec import Projector


class Linear(nn.Module):
    """One matrix with a bias: LLaVA v1."""

    def __init__(self, vision_width: int, decoder_width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(vision_width, decoder_width)

    def forward(self, features: Tensor) -> Tensor:
        """(..., vision width) to (..., decoder width)."""
        return self.linear(features)


class Mlp(nn.Module):
    """Two matrices with an exact GELU between: LLaVA-1.5.

    Source: Liu et al. 2023, "Improved Baselines with Visual Instruction Tuning".
    """

    def __init__(self, vision_width: int, decoder_width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(vision_width, decoder_width)
        self.linear_2 = nn.Linear(decoder_width, decoder_width)

    def forward(self, features: Tensor) -> Tensor:
        """(..., vision width) to (..., decoder width)."""
        return self.linear_2(F.gelu(self.linear_1(features)))


PROJECTORS: dict[Projector, Callable[[int, int], nn.Module]] = {
    "linear": Linear,
    "mlp2x_gelu": Mlp,
}
