"""Learning from answers: language pretraining, align and instruct differ only in what may move."""

# B rows, T tokens, M supervised tokens, V vocabulary

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lapilli.data.conversations import Groups, make_batch
from lapilli.data.mixture import mix
from lapilli.inputs import IGNORE, Inputs
from lapilli.model.llava import Llava
from lapilli.processor.processor import Processor
from lapilli.train.recipe import Recipe

VALIDATION_GROUPS = 96
"""Groups of a validation source that are looked at, at most."""


def answer_logits(model: Llava, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Return logits (M, V) where the next token is supervised, and those tokens (M,)."""
    assert inputs.labels is not None
    hidden = model.hidden(**inputs)
    targets = inputs.labels[:, 1:]
    is_supervised = targets != IGNORE
    return model.language_model.lm_head(hidden[:, :-1][is_supervised]), targets[is_supervised]


def token_weights(inputs: Inputs) -> Tensor:
    """Return how much each supervised token counts (M,): 1/sqrt(n) in a conversation of n.

    A caption of thirty tokens then counts five times as much as a "yes", not thirty times.

    Source: Chen et al. 2024, "Expanding Performance Boundaries of Open-Source Multimodal Models"
    (InternVL 2.5), square averaging.
    """
    assert inputs.labels is not None
    rows = torch.arange(len(inputs.labels), device=inputs.labels.device)[:, None]
    owners = [rows.expand_as(inputs.labels), inputs.groups]
    if inputs.branches is not None:
        owners.append(inputs.branches)
    is_supervised = inputs.labels[:, 1:] != IGNORE
    owner = torch.stack([part[:, 1:][is_supervised] for part in owners])  # (2 or 3, M)
    _, which, counts = owner.unique(dim=1, return_inverse=True, return_counts=True)
    return counts[which].float().rsqrt()


class ConversationLearner:
    """Stage "conversation" of a recipe.

    Args:
        sources, validation: groups of records by source, in the recipe's order.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: Llava,
        processor: Processor,
        sources: list[Groups],
        validation: list[Groups],
        *,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.recipe, self.module, self.processor = recipe, model, processor
        self.sources, self.validation = sources, validation
        self.rank, self.world_size = rank, world_size
        weights = [source.weight for source in recipe.data.sources]
        total = recipe.stage.steps * recipe.stage.batch
        self.order = mix([len(s) for s in sources], weights, total, recipe.run.seed)

    def parts(self) -> dict[str, nn.Module]:
        """The three parts of LLaVA; what ends a line of a cut picture goes with the projector."""
        projector: nn.Module = self.module.projector
        if self.module.spec.tiling is not None:
            projector = nn.ParameterList([*projector.parameters(), self.module.image_newline])
        return {
            "vision_tower": self.module.vision_tower,
            "projector": projector,
            "language_model": self.module.language_model,
        }

    def batch(self, step: int) -> Inputs:
        """Return this process's share of the groups of a step, packed."""
        size = self.recipe.stage.batch
        rows = self.order[step * size : (step + 1) * size][self.rank :: self.world_size]
        rng = np.random.default_rng([self.recipe.run.seed, step, self.rank])
        groups = [(self.sources[source], int(index)) for source, index in rows]
        return make_batch(groups, self.processor, self.recipe.data.row_tokens, rng)

    def loss(self, batch: Inputs) -> tuple[Tensor, float, dict[str, float]]:
        """Return the weighted mean cross entropy of supervised tokens, the sum of their weights,
        and how many there were."""
        with self._autocast():
            logits, targets = answer_logits(self.module, batch)
        weights = token_weights(batch)
        each = F.cross_entropy(logits.float(), targets, reduction="none")
        # The mean of nothing is no number, and would spoil the gradients of other processes.
        total = weights.sum()
        loss = (each * weights).sum() / total.clamp(min=1e-6)
        return loss, float(total), {"supervised_tokens": float(len(targets))}

    def _autocast(self) -> torch.autocast:
        kind = self.module.device.type
        return torch.autocast(kind, torch.bfloat16, enabled=self.recipe.run.dtype == "bf16")

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Return the loss of each validation source, and by kind the share of answers that greedy
        decoding would give word for word."""
        figures = {}
        for source, recipe in zip(self.validation, self.recipe.data.validation, strict=True):
            losses: list[float] = []
            hits: dict[str, list[float]] = defaultdict(list)
            chosen = range(0, len(source), max(1, len(source) // VALIDATION_GROUPS))
            for index in chosen:
                self._evaluate_group(source, index, losses, hits)
            name = recipe.path.stem.removeprefix("validation-")
            figures[f"{name}/loss"] = float(np.mean(losses))
            figures |= {f"{name}/{kind}": float(np.mean(hits[kind])) for kind in sorted(hits)}
        return figures

    def _evaluate_group(
        self, source: Groups, index: int, losses: list[float], hits: dict[str, list[float]]
    ) -> None:
        # Room for every conversation, so that branch k + 1 is record k (a lone record is branch 0).
        batch = make_batch([(source, index)], self.processor, 100_000, None)
        assert batch.labels is not None and batch.branches is not None
        with self._autocast():
            logits, targets = answer_logits(self.module, batch)
        losses += F.cross_entropy(logits.float(), targets, reduction="none").tolist()
        branches = batch.branches[:, 1:][batch.labels[:, 1:] != IGNORE]
        is_right = logits.argmax(-1) == targets
        for branch in branches.unique().tolist():
            sample = source[index][max(branch - 1, 0)]
            if sample.kind:
                hits[sample.kind].append(float(is_right[branches == branch].all()))
