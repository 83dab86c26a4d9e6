"""A decoder outside the Llama family, run by `transformers`, with the face of `Decoder`.

It is slower: every attention takes a mask and a copy of what the cache holds, and a step of one
token is the plain forward pass. No code but that of the installed `transformers` is run.
"""

# B batch, T tokens of a row, N new tokens of all sequences, S all of their tokens, C tokens that a
# memory holds, D width, V vocabulary, G key-value heads, K head width

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from lapilli.errors import ConfigError, PromptError
from lapilli.model.cache import Span, new_places, places
from lapilli.model.spec import FOREIGN_DECODERS, ForeignSpec

_IGNORED = ("architectures", "dtype", "torch_dtype", "transformers_version")
"""Words of a configuration that say nothing of the architecture."""

_REFUSED = ("quantization_config", "alibi", "use_bidirectional_attention")
"""What changes the weights, or makes a decoder form its masks itself."""


def foreign_spec(config: Mapping[str, Any]) -> ForeignSpec:
    """Return the architecture of a decoder of `transformers`.

    Args:
        config: its configuration there, `model_type` among it; values left out have its defaults.

    Raises:
        ConfigError: `transformers` refuses it, or it asks for what is not supported.
    """
    kept = {
        key: value
        for key, value in config.items()
        # A configuration may name attention kernels to download; ours are those that are here.
        if key not in _IGNORED and not key.startswith("_") and not key.endswith("_implementation")
    }
    ForeignSpec(kept, 1, 1, 1, 1, False)  # refuses what must not reach the library
    for key in _REFUSED:
        if kept.get(key):
            raise ConfigError(f"{key} is {kept[key]!r}; supported is none")
    theirs = _their_config(kept)
    for kind in getattr(theirs, "layer_types", None) or ():
        if kind not in ("full_attention", "sliding_attention"):
            raise ConfigError(f"layer_types holds {kind!r}; supported is full or sliding attention")
    names = {
        "vocab_size": ("vocab_size",),
        "width": ("hidden_size",),
        "num_layers": ("num_hidden_layers",),
        "max_positions": ("max_position_embeddings", "max_seq_len"),
    }
    numbers: dict[str, int] = {}
    for ours, known in names.items():
        found = [getattr(theirs, name) for name in known if getattr(theirs, name, None)]
        if not found or type(found[0]) is not int:
            raise ConfigError(f"{known[0]} is {found[0] if found else None!r}; give an integer")
        numbers[ours] = found[0]
    rope = getattr(theirs, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        # Beyond this its frequencies are others for the whole batch, cached keys not among it.
        original = rope.get("original_max_position_embeddings") or numbers["max_positions"]
        numbers["max_positions"] = min(numbers["max_positions"], int(original))
    return ForeignSpec(kept, **numbers, is_tied=bool(theirs.tie_word_embeddings))


def _their_config(values: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig

    with _told(str(values.get("model_type"))):
        return AutoConfig.for_model(**values)


@contextmanager
def _told(model_type: str) -> Iterator[None]:
    """Tell in one line what `transformers` does not like, whichever of its checks speaks."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"transformers cannot build this {model_type} ({reason})") from error


class ForeignCache:
    """Keys and values of many sequences in one memory, as `lapilli.model.cache.KVCache` keeps them.

    The memory of a layer is taken when its first keys come: configurations do not tell their shape
    in the same words.

    Args:
        capacity: tokens that it holds, of all sequences together.

    Attributes:
        layers: keys and values, (G, C, K) each, by the number of the layer.
        positions: (C,) int64, of the tokens in their sequences.
    """

    def __init__(self, capacity: int, device: torch.device) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        self.positions = torch.zeros(capacity, dtype=torch.long, device=device)

    @property
    def num_bytes(self) -> int:
        """What it takes so far."""
        return sum(part.nbytes for pair in self.layers.values() for part in pair)

    def read(self, spans: Sequence[Span]) -> ForeignView:
        """Return what `ForeignDecoder.forward` works on when the spans stand side by side."""
        return ForeignView(self, spans)

    step = read


class ForeignView:
    """New tokens of several sequences, in the place of a cache of `transformers`.

    All that the sequences hold stands side by side, and a mask parts it.

    Attributes:
        mask: (1, 1, N, S) bool, true where a new token may look; S tokens of all sequences.
    """

    def __init__(self, cache: ForeignCache, spans: Sequence[Span]) -> None:
        self.cache = cache
        self.spans = spans
        device = cache.positions.device
        self.new = new_places(spans, device)
        self.held = places([part for span in spans for part in span.held()], device)
        blocks = [
            torch.ones(span.num_new, span.num_seen + span.num_new, dtype=torch.bool).tril(
                span.num_seen
            )
            for span in spans
        ]
        self.mask = torch.block_diag(*blocks).bool()[None, None].to(device)

    def apart(self) -> list[ForeignView]:
        """Return a view of each sequence alone."""
        return [ForeignView(self.cache, [span]) for span in self.spans]

    def take(self, positions: Tensor) -> Tensor:
        """Note (1, N) positions of the new tokens; return those of all tokens, (1, S)."""
        self.cache.positions[self.new] = positions[0]
        return self.cache.positions[self.held][None]

    # What `transformers` asks of a cache

    def update(
        self, key: Tensor, value: Tensor, layer: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Keep (1, G, N, K) keys and values; return those of all tokens, (1, G, S, K)."""
        if layer not in self.cache.layers:
            capacity = len(self.cache.positions)
            keys, values = (x.new_empty(x.shape[1], capacity, x.shape[3]) for x in (key, value))
            self.cache.layers[layer] = keys, values
        keys, values = self.cache.layers[layer]
        keys.index_copy_(1, self.new, key[0])
        values.index_copy_(1, self.new, value[0])
        return keys[None, :, self.held], values[None, :, self.held]

    def get_seq_length(self, layer: int = 0) -> int:
        """Return how many tokens there were before the new ones."""
        return len(self.held) - len(self.new)


class ForeignDecoder(nn.Module):
    """A language model of `transformers`, as a body and a head.

    On the meta device its weights have no memory, and its constants (rotary frequencies, say) are
    on the CPU, since no file holds them.

    Raises:
        ConfigError: `transformers` refuses the configuration, or it says other numbers.
    """

    def __init__(self, spec: ForeignSpec) -> None:
        super().__init__()
        from transformers import AutoModelForCausalLM

        if foreign_spec(spec.config) != spec:
            raise ConfigError(f"decoder: its numbers are not those of its config, {spec.config}")
        self.spec = spec
        config = _their_config(spec.config)
        with _told(spec.model_type), _weights_without_memory():
            causal = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        self.body = causal.base_model
        self.lm_head = Head(causal)
        self.windows = FOREIGN_DECODERS[spec.model_type]
        self.window: int | None = None
        if self.windows in ("all", "layers"):
            self.window = getattr(config, "sliding_window", None)
        self.takes_positions = "position_ids" in inspect.signature(self.body.forward).parameters

    @property
    def embed_tokens(self) -> nn.Embedding:
        """The token embeddings; where they are scaled, calling them scales."""
        return self.body.get_input_embeddings()

    def forward(
        self,
        embeds: Tensor,
        positions: Tensor,
        mask: Tensor | None = None,
        cache: ForeignView | None = None,
    ) -> Tensor:
        """Return hidden states after the final norm; `lm_head` turns them into logits.

        Args:
            embeds: (B, T, D).
            positions: (B, T) places of the tokens in their sequence, from 0.
            mask: (B, 1, T, T) bool, true where a token may look; None for plain causal order.
            cache: keeps the tokens, and knows who sees whom; excludes `mask`.

        Returns:
            (B, T, D).

        Raises:
            PromptError: the decoder counts distances in places, and the row branches.
        """
        if cache is None:
            seen = positions
            if mask is None:
                length = embeds.shape[1]
                order = torch.ones(length, length, dtype=torch.bool, device=embeds.device).tril()
                mask = order.expand(len(embeds), 1, -1, -1)
        elif self.windows == "places" and len(cache.spans) > 1:
            sizes = [span.num_new for span in cache.spans]
            parts = zip(
                embeds.split(sizes, 1), positions.split(sizes, 1), cache.apart(), strict=True
            )
            return torch.cat([self(part, where, None, view) for part, where, view in parts], 1)
        else:
            seen, mask = cache.take(positions), cache.mask
        distances = (positions[:, :, None] - seen[:, None, :])[:, None]  # (B, 1, T, S)
        if self.windows == "places":
            self._expect_places(distances, mask)
        full = sliding = _additive(mask, embeds.dtype)
        if self.window is not None:
            sliding = _additive(mask & (distances < self.window), embeds.dtype)
        masks: Tensor | dict[str, Tensor] = sliding
        if self.windows == "layers":
            masks = {"full_attention": full, "sliding_attention": sliding}
        return self.body(
            inputs_embeds=embeds,
            attention_mask=masks,
            past_key_values=cache,
            use_cache=cache is not None,
            **({"position_ids": positions} if self.takes_positions else {}),
        ).last_hidden_state

    def _expect_places(self, distances: Tensor, mask: Tensor) -> None:
        num_new, num_all = distances.shape[2:]
        places = torch.arange(num_all, device=mask.device)
        # None that see each other stand at the same position, padding apart.
        is_as_far = (distances == places[-num_new:, None] - places) | (distances == 0)
        if not bool((is_as_far | ~mask).all()):
            raise PromptError(
                f"{self.spec.model_type} counts distances in places of the row, and this row "
                "branches. Give it conversations without branches"
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # A cast of the model must not round constants.
        constants = {id(buffer) for buffer in self.buffers()}
        return super()._apply(
            lambda x: x.to(fn(x).device) if id(x) in constants else fn(x), recurse
        )


class Head(nn.Module):
    """From hidden states to logits, biases, scales and soft caps among it.

    `transformers` writes these into the forward pass of each whole language model: the whole is
    called here, with what hands on the hidden states in the place of its body.
    """

    def __init__(self, causal: Any) -> None:
        super().__init__()
        self.output = causal.get_output_embeddings()
        setattr(causal, causal.base_model_prefix, _HandedOn())
        self._causal = (causal,)  # in a tuple it is no part of this module, nor are its weights

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., D) to (..., V)."""
        (causal,) = self._causal
        logits = causal(inputs_embeds=hidden.reshape(1, -1, hidden.shape[-1])).logits
        return logits.reshape(*hidden.shape[:-1], -1)


class _HandedOn(nn.Module):
    """A body that takes its inputs for hidden states."""

    def forward(self, *_: object, inputs_embeds: Tensor, **__: object) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=inputs_embeds)


class ForeignStepper:
    """Takes one new token of each of several sequences, as `lapilli.model.step.Stepper` does."""

    def __init__(self, decoder: ForeignDecoder) -> None:
        self.decoder = decoder

    def __call__(self, tokens: Tensor, positions: Tensor, view: ForeignView) -> Tensor:
        """Return the (B, V) logits of what follows (B,) tokens at (B,) positions."""
        embeds = self.decoder.embed_tokens(tokens)[None]
        return self.decoder.lm_head(self.decoder(embeds, positions[None], None, view)[0])


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as every attention of `transformers` takes it: added to the scores."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


@contextmanager
def _weights_without_memory() -> Iterator[None]:
    """On the meta device, build on the CPU and take the memory of each weight as it is made."""
    if torch.get_default_device().type != "meta":
        yield
        return

    def empty(_: nn.Module, __: str, weight: nn.Parameter) -> nn.Parameter | None:
        # One that is empty comes a second time where it is shared, and stays the same.
        return None if weight.is_meta else nn.Parameter(weight.to("meta"), weight.requires_grad)

    hook = register_module_parameter_registration_hook(empty)  # type: ignore[arg-type]
    try:
        with torch.device("cpu"):
            yield
    finally:
        hook.remove()
