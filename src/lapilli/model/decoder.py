"""One decoder for the Llama family: Llama, Vicuna, Mistral, Qwen2."""

# B batch, T tokens, D width, H heads, G key-value heads, K head width

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn
from torch.nn import functional as F

from lapilli.model.attention import attend
from lapilli.model.masks import causal_mask, window_mask
from lapilli.model.rope import rotary_frequencies, rotate
from lapilli.model.spec import DecoderSpec


class Cache(Protocol):
    """Keys and values of earlier tokens, and who sees them; `lapilli.model.cache` has one."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Take (B, G, T, K) new keys and values in; return what (B, H, T, K) queries see."""
        ...


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, spec: DecoderSpec, index: int) -> None:
        super().__init__()
        self.index = index
        self.head_dim = spec.head_dim
        inner, inner_kv = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        self.q_proj = nn.Linear(spec.width, inner, bias=spec.has_qkv_bias)
        self.k_proj = nn.Linear(spec.width, inner_kv, bias=spec.has_qkv_bias)
        self.v_proj = nn.Linear(spec.width, inner_kv, bias=spec.has_qkv_bias)
        self.o_proj = nn.Linear(inner, spec.width, bias=False)

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None, cache: Cache | None
    ) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        query, key, value = (
            proj(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, H or G, T, K)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = rotate(query, *rotary), rotate(key, *rotary)
        if cache is not None:
            mixed = cache.attend(self.index, query, key, value)
        else:
            is_causal = mask is None and query.shape[2] > 1
            mixed = attend(query, key, value, mask, is_causal=is_causal)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """SwiGLU. Source: Shazeer 2020, "GLU Variants Improve Transformer"."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(spec.width, spec.mlp_width, bias=False)
        self.up_proj = nn.Linear(spec.width, spec.mlp_width, bias=False)
        self.down_proj = nn.Linear(spec.mlp_width, spec.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Attention and perceptron, each behind a root-mean-square norm and beside a shortcut."""

    def __init__(self, spec: DecoderSpec, index: int) -> None:
        super().__init__()
        self.input_norm = nn.RMSNorm(spec.width, spec.norm_eps)
        self.attention = Attention(spec, index)
        self.post_attention_norm = nn.RMSNorm(spec.width, spec.norm_eps)
        self.mlp = Mlp(spec)

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None, cache: Cache | None
    ) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        x = x + self.attention(self.input_norm(x), rotary, mask, cache)
        return x + self.mlp(self.post_attention_norm(x))


class Decoder(nn.Module):
    """Token embeddings, layers, a final norm and a head.

    Source: Touvron et al. 2023, "Llama 2"; Jiang et al. 2023, "Mistral 7B".
    """

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embed_tokens = nn.Embedding(spec.vocab_size, spec.width)
        self.layers = nn.ModuleList(Layer(spec, index) for index in range(spec.num_layers))
        self.norm = nn.RMSNorm(spec.width, spec.norm_eps)
        self.lm_head = nn.Linear(spec.width, spec.vocab_size, bias=False)
        if spec.is_tied:
            self.lm_head.weight = self.embed_tokens.weight
        self._frequencies: Tensor | None = None

    def rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines of (B, T) positions: (B, 1, T, K / 2) each, fp32."""
        # No buffer: a cast of the model must not round them, nor a meta device void them.
        if self._frequencies is None or self._frequencies.device != positions.device:
            self._frequencies = rotary_frequencies(self.spec, positions.device)
        angles = positions[:, None, :, None].float() * self._frequencies
        return angles.cos(), angles.sin()

    def forward(
        self,
        embeds: Tensor,
        positions: Tensor,
        mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Return hidden states after the final norm; `lm_head` turns them into logits.

        Args:
            embeds: (B, T, D).
            positions: (B, T) places of the tokens in their sequence, from 0.
            mask: (B, 1, T, T) bool, true where a token may look; None for plain causal order. The
                spec's sliding window is added here.
            cache: keeps the tokens, and knows who sees whom; excludes `mask`.

        Returns:
            (B, T, D).
        """
        rotary = self.rotary(positions)
        window = self.spec.sliding_window
        if cache is None and mask is None:
            mask = causal_mask(embeds.shape[1], 0, window, embeds.device)
        elif mask is not None and window is not None:
            mask = mask & window_mask(positions, window)
        x = embeds
        for layer in self.layers:
            x = layer(x, rotary, mask, cache)
        return self.norm(x)
