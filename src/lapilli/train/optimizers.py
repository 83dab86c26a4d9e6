"""Muon for the matrices inside layers, AdamW for everything else.

Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; Liu et al.
2025, "Muon is Scalable for LLM Training" (the scale of its steps).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from lapilli.errors import ConfigError
from lapilli.train.parallel import share_out

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrices: Tensor, num_steps: int = 5) -> Tensor:
    """Return the nearest (semi-)orthogonal matrices, roughly: singular values near 1.

    Args:
        matrices: (M, R, C).

    Returns:
        (M, R, C) in bf16.
    """
    a, b, c = NEWTON_SCHULZ
    x = matrices.bfloat16()
    is_tall = x.shape[1] > x.shape[2]
    if is_tall:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(num_steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if is_tall else x


class Muon(Optimizer):
    """Momentum whose step is made orthogonal; matrices of one shape go through together, and
    processes share the work.

    Steps are scaled so that their root mean square equals that of AdamW at the same rate.
    """

    def __init__(
        self, params: Iterable[Any], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every matrix that has a gradient."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = {}
            for param in group["params"]:
                if param.grad is not None:
                    shapes.setdefault(param.shape, []).append(param)
            for params in shapes.values():
                self._step_together(params, group)

    def _step_together(self, params: list[Tensor], group: dict[str, Any]) -> None:
        momentum = group["momentum"]
        directions = []
        for param in params:
            assert param.grad is not None
            state = self.state[param]
            if not state:
                state["momentum"] = torch.zeros_like(param)
            state["momentum"].lerp_(param.grad, 1 - momentum)
            directions.append(param.grad.lerp(state["momentum"], momentum))
        updates = share_out(torch.stack(directions), orthogonalize)
        scale = 0.2 * max(params[0].shape) ** 0.5 * group["lr"]
        for param, update in zip(params, updates, strict=True):
            param.mul_(1 - group["lr"] * group["weight_decay"])
            param.add_(update.to(param.dtype), alpha=-scale)


def build_optimizers(
    parts: dict[str, nn.Module], rates: dict[str, float], *, name: str, weight_decay: float
) -> list[Optimizer]:
    """Return the optimizers of the parts that learn; everything else is frozen.

    Args:
        parts: modules by the names that recipes use.
        rates: peak learning rate of each part that learns.
        name: "muon" (with AdamW for vectors, embeddings and heads) or "adamw".
        weight_decay: for matrices.

    Raises:
        ConfigError: `rates` names a part that there is not.
    """
    for part in rates.keys() - parts.keys():
        raise ConfigError(f"stage.learn: no part {part!r}; known here: {', '.join(parts)}")
    matrices: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    seen: set[int] = set()
    for part, module in parts.items():
        is_learning = part in rates
        inner: list[Tensor] = []
        outer: list[Tensor] = []
        for key, param in module.named_parameters():
            param.requires_grad_(is_learning)
            if is_learning and id(param) not in seen:
                seen.add(id(param))
                (inner if _is_inner_matrix(key, param, name) else outer).append(param)
        rate = {"lr": rates.get(part, 0.0), "peak_lr": rates.get(part, 0.0), "part": part}
        if inner:
            matrices.append({"params": inner, "weight_decay": weight_decay, **rate})
        if outer:
            decay = weight_decay if name == "adamw" else 0.0
            others.append({"params": outer, "weight_decay": decay, **rate})
    optimizers: list[Optimizer] = []
    if matrices:
        optimizers.append(Muon(matrices, lr=0.0))
    if others:
        optimizers.append(AdamW(others, lr=0.0, betas=(0.9, 0.95), fused=True))
    return optimizers


def _is_inner_matrix(key: str, param: Tensor, name: str) -> bool:
    # "wte" and "wpe" are the tables of GPT-2's kin.
    is_edge = any(word in key for word in ("embed", "head", "table", "wte", "wpe"))
    return name == "muon" and param.ndim == 2 and not is_edge
