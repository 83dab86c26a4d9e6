"""A decoder outside the Llama family, run by `transformers`, with the face of `Decoder`.

It is slower: every attention takes a mask, the cache grows by copies, and a step of one token is
the plain forward pass. No code but that of the installed `transformers` is run.
"""

# B batch, T new tokens, S tokens seen so far and new, D width, V vocabulary

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_parameter_registration_hook

from lapilli.errors import ConfigError, PromptError
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
    """Keys and values as `transformers` holds them, and where their tokens stand.

    Attributes:
        positions: (B, S) int64 places of the tokens in their sequences; None while empty.
    """

    def __init__(self) -> None:
        from transformers import DynamicCache

        # Whole in all layers; the decoder's masks hold the windows.
        self.layers = DynamicCache()
        self.positions: Tensor | None = None

    def extend(self, positions: Tensor) -> Tensor:
        """Note (B, T) positions after those that are held; return all, (B, S)."""
        held = [] if self.positions is None else [self.positions]
        self.positions = torch.cat([*held, positions], 1)
        return self.positions

    def keep(self, rows: Tensor) -> None:
        """Drop every row of the batch but `rows`, (number kept,) int64 indices."""
        assert self.positions is not None
        self.layers.batch_select_indices(rows)
        self.positions = self.positions[rows]


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
        cache: ForeignCache | None = None,
    ) -> Tensor:
        """Return hidden states after the final norm; `lm_head` turns them into logits.

        Args:
            embeds: (B, T, D).
            positions: (B, T) places of the tokens in their sequence, from 0.
            mask: (B, 1, T, S) bool, true where a token may look; None for plain causal order.
            cache: keys and values of earlier tokens; extended by the new ones.

        Returns:
            (B, T, D).

        Raises:
            PromptError: the decoder counts distances in places, and the row branches.
        """
        num_rows, num_new, _ = embeds.shape
        seen = positions if cache is None else cache.extend(positions)  # (B, S)
        if mask is None:
            order = torch.ones(num_new, seen.shape[1], dtype=torch.bool, device=embeds.device)
            order = order.tril(seen.shape[1] - num_new)
            mask = order.expand(num_rows, 1, *order.shape)
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
            past_key_values=None if cache is None else cache.layers,
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
    """Continues what a cache holds, one token a row at a time; for inference alone.

    Args:
        cache: filled with the rows' prompts.
        positions: (B,) int64 place of each row's next token in its sequence.
        is_token: (B, S) bool, false where a prompt was padded; None where none was.
    """

    def __init__(
        self,
        decoder: ForeignDecoder,
        cache: ForeignCache,
        positions: Tensor,
        is_token: Tensor | None,
    ) -> None:
        self.decoder = decoder
        self.cache = cache
        self.positions = positions
        self.is_token = is_token

    def __call__(self, tokens: Tensor) -> Tensor:
        """Take (B,) int64 tokens into the cache; return the (B, V) logits of those after them."""
        mask = None
        if self.is_token is not None:
            self.is_token = F.pad(self.is_token, (0, 1), value=True)
            mask = self.is_token[:, None, None]
        embeds = self.decoder.embed_tokens(tokens[:, None])
        hidden = self.decoder(embeds, self.positions[:, None], mask, self.cache)
        self.positions = self.positions + 1
        return self.decoder.lm_head(hidden[:, 0])

    def keep(self, rows: Tensor) -> None:
        """Go on with `rows` alone, (number kept,) int64 indices."""
        self.cache.keep(rows)
        self.positions = self.positions[rows]
        if self.is_token is not None:
            self.is_token = self.is_token[rows]


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
