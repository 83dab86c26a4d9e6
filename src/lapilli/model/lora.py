"""LoRA: products of two narrow matrices, which learn in place of the wide ones beside them.

The layers are PEFT's, put where the model's linear layers were; a model without an adapter never
imports PEFT. `merged` alone is the whole arithmetic of an adapter that no longer learns.

Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models"; Kalajdzievski 2023,
"A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA".
"""

# R rank, I inputs, O outputs

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lapilli.errors import ConfigError
from lapilli.model.llava import Llava

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

_NAME = "default"
"""Of the one adapter that a model has, in PEFT's layers."""


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """How large the products are, and how much they count.

    Attributes:
        dropout: share of a product's inputs that are dropped, while training alone.
        is_rank_stabilized: products count alpha / sqrt(rank) in place of alpha / rank.
        ranks, alphas: of single layers, by their names, where they differ.
    """

    rank: int = 128
    alpha: float = 256.0
    dropout: float = 0.0
    is_rank_stabilized: bool = False
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for rank in (self.rank, *self.ranks.values()):
            if rank < 1:
                raise ConfigError(f"the rank of an adapter is {rank}; give 1 or more")
        for alpha in (self.alpha, *self.alphas.values()):
            if not 0 < alpha < math.inf:
                raise ConfigError(f"the alpha of an adapter is {alpha}; give a number above 0")
        if not 0 <= self.dropout < 1:
            raise ConfigError(
                f"the dropout of an adapter is {self.dropout}; give 0 or more, below 1"
            )

    def rank_of(self, name: str) -> int:
        """Return the rank of a layer's product."""
        return self.ranks.get(name, self.rank)

    def scale_of(self, name: str) -> float:
        """Return what a layer's product is multiplied by."""
        rank = self.rank_of(name)
        alpha = self.alphas.get(name, self.alpha)
        return alpha / math.sqrt(rank) if self.is_rank_stabilized else alpha / rank


def decoder_linears(model: Llava) -> list[str]:
    """Return the names of the linear layers that LLaVA's adapters are put on: all of the decoder's
    layers, without the head."""
    start = "language_model.layers."
    return [name for name in linears(model) if name.startswith(start)]


def linears(model: Llava) -> list[str]:
    """Return the names of all layers that can have an adapter.

    A head that is the embeddings cannot: they would have to change with it.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if model.spec.decoder.is_tied:
        names.remove("language_model.lm_head")
    return names


def add_lora(
    model: Llava,
    names: Iterable[str],
    settings: LoraSettings = LoraSettings(),
) -> None:
    """Put an adapter on linear layers; it changes nothing until it has learned.

    All other parameters are frozen; who trains them as well thaws them afterwards.

    Args:
        names: of the layers, among `linears(model)`.

    Raises:
        ConfigError: the model has an adapter, a layer cannot have one, or PEFT is not installed.
    """
    names = list(names)
    if lora_layers(model):
        raise ConfigError("the model has an adapter; merge it before another is added")
    unfit = sorted(set(names) - set(linears(model)))
    if unfit or not names:
        what = ", ".join(unfit) or "nothing"
        raise ConfigError(f"no adapter can be put on {what}; name linear layers of the model")
    peft = _peft()
    # PEFT reads the names of single layers as regular expressions.
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        use_rslora=settings.is_rank_stabilized,
        target_modules=names,
        rank_pattern={re.escape(name): rank for name, rank in settings.ranks.items()},
        alpha_pattern={re.escape(name): alpha for name, alpha in settings.alphas.items()},
    )
    peft.inject_adapter_in_model(config, model, _NAME)


def lora_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """Return the layers that have an adapter, by their names."""
    return {name: module for name, module in model.named_modules() if is_adapted(module)}


def lora_settings(model: Llava) -> LoraSettings:
    """Return how a model's adapter was made."""
    layers: dict[str, Any] = dict(lora_layers(model))
    config = vars(model)["peft_config"][_NAME]
    ranks = {name: layer.r[_NAME] for name, layer in layers.items()}
    alphas = {name: layer.lora_alpha[_NAME] for name, layer in layers.items()}
    return LoraSettings(
        rank=config.r,
        alpha=config.lora_alpha,
        dropout=config.lora_dropout,
        is_rank_stabilized=config.use_rslora,
        ranks={name: rank for name, rank in ranks.items() if rank != config.r},
        alphas={name: alpha for name, alpha in alphas.items() if alpha != config.lora_alpha},
    )


def lora_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return what learns in an adapter, by the parameters' names in the model."""
    return {name: value for name, value in model.named_parameters() if is_lora(name)}


def is_lora(parameter: str) -> bool:
    """Whether a parameter of this name belongs to an adapter."""
    return ".lora_A." in parameter or ".lora_B." in parameter


def is_adapted(module: nn.Module) -> bool:
    """Whether a layer has an adapter; it then acts with more than its `weight`."""
    return hasattr(module, "lora_A")


def low_rank(module: nn.Linear) -> tuple[Tensor, Tensor]:
    """Return what an adapter adds to a layer's own weight, as two matrices.

    Returns:
        (R, I) and (O, R), whose product is added as it is; R is 0 for a layer without an adapter,
        or with one that is merged.
    """
    layer: Any = module
    if not is_adapted(module) or layer.merged:
        num_outputs, num_inputs = layer.weight.shape
        return layer.weight.new_empty(0, num_inputs), layer.weight.new_empty(num_outputs, 0)
    a, b = layer.lora_A[_NAME].weight, layer.lora_B[_NAME].weight
    return a.detach(), b.detach() * layer.scaling[_NAME]


def merged(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Return a weight with an adapter's product added; computed in fp32, of the weight's type.

    Args:
        weight: (O, I).
        a: (R, I).
        b: (O, R).
    """
    product = b.detach().to(weight.device).float() @ a.detach().to(weight.device).float()
    return (weight.detach().float() + scale * product).to(weight.dtype)


@torch.no_grad()
def merge(model: Llava) -> None:
    """Write the adapter into the weights beside it, until `unmerge`."""
    for layer in lora_layers(model).values():
        layer.merge()


@torch.no_grad()
def unmerge(model: Llava) -> None:
    """Take the adapter out of the weights again; they come back to their type's rounding."""
    for layer in lora_layers(model).values():
        if layer.merged:
            layer.unmerge()


def merge_and_unload(model: Llava) -> None:
    """Write the adapter into the weights for good, and make the layers plain again."""
    layers: dict[str, Any] = dict(lora_layers(model))
    for name, layer in layers.items():
        plain = layer.get_base_layer()
        if not layer.merged:
            a, b = layer.lora_A[_NAME].weight, layer.lora_B[_NAME].weight
            plain.weight = nn.Parameter(merged(plain.weight, a, b, layer.scaling[_NAME]))
        model.set_submodule(name, plain)
    vars(model).pop("peft_config", None)  # PEFT's note of it


def _peft() -> ModuleType:
    try:
        import peft
    except ImportError as error:
        raise ConfigError(
            "adapters that stay apart need PEFT; run pip install 'lapilli[train]', or merge them"
        ) from error
    return peft
