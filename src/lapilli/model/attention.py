"""One attention for the vision tower and the decoder."""

# B batch, H heads, T queries, S keys, K head width

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, is_causal: bool = False
) -> Tensor:
    """Return softmax(query key^T / sqrt(K)) value.

    Args:
        query: (B, H, T, K).
        key, value: (B, G, S, K); G divides H, each key-value head serves H / G query heads.
        mask: broadcastable to (B, H, T, S); true where a query may look. None for everywhere.
        is_causal: query t looks at keys up to t; excludes `mask`.

    Returns:
        (B, H, T, K).
    """
    if torch.is_grad_enabled() and query.device.type == "cpu":
        return _attend_plainly(query, key, value, mask, is_causal=is_causal)
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=is_causal,
        enable_gqa=key.shape[1] != query.shape[1],
    )


def _attend_plainly(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, is_causal: bool
) -> Tensor:
    """Attention by two matrix products; in bf16 on a CPU its backward pass is up to five times
    as fast as the fused kernel's at the lengths that are trained there."""
    num_shared = query.shape[1] // key.shape[1]
    if num_shared > 1:
        key, value = (x.repeat_interleave(num_shared, 1) for x in (key, value))
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)  # (B, H, T, S)
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(-1).to(value.dtype) @ value
