"""Muon's directions and step sizes, and who gets which optimizer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lapilli.errors import ConfigError
from lapilli.model.llava import Llava
from lapilli.train.optimizers import Muon, build_optimizers, orthogonalize

SHAPES = [(24, 24), (16, 64), (64, 16)]


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonalizing_keeps_directions_and_makes_their_sizes_one(
    shape: tuple[int, int], scale: float
) -> None:
    torch.manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    sizes = torch.linspace(0.05, 1, len(right))
    made = orthogonalize((left * sizes @ right * scale)[None])
    assert (made.shape, made.dtype) == ((1, *shape), torch.bfloat16)
    inner = left.mT @ made[0].float() @ right.mT
    assert inner.diag().min() > 0.6
    assert inner.diag().max() < 1.3
    assert (inner - inner.diag().diag()).abs().max() < 0.1


def test_a_matrix_without_a_gradient_has_no_direction() -> None:
    assert (orthogonalize(torch.zeros(1, 4, 6)) == 0).all()


def stepped(weights: list[Tensor], grads: list[list[Tensor]], **settings: float) -> list[Tensor]:
    """The weights after steps with these gradients."""
    params = [nn.Parameter(weight.clone()) for weight in weights]
    optimizer = Muon(params, **{"lr": 0.01, **settings})
    for step in grads:
        for param, grad in zip(params, step, strict=True):
            param.grad = grad
        optimizer.step()
    return [param.detach() for param in params]


@pytest.mark.parametrize("shape", SHAPES)
def test_steps_are_as_large_as_those_of_adamw(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    (moved,) = stepped([torch.zeros(shape)], [[torch.randn(shape) * 1e-3]])
    # AdamW's steps have a root mean square of 0.2 to 0.4 of its rate.
    assert float(moved.pow(2).mean().sqrt()) == pytest.approx(0.2 * 0.01, rel=0.15)


def test_a_step_goes_against_the_gradient() -> None:
    torch.manual_seed(0)
    grad = torch.randn(8, 8)
    (moved,) = stepped([torch.zeros(8, 8)], [[grad]])
    assert float((moved * grad).sum()) < 0


def test_matrices_that_go_together_move_as_if_alone() -> None:
    torch.manual_seed(0)
    weights = [torch.randn(8, 12) for _ in range(3)]
    grads = [[torch.randn(8, 12) for _ in range(3)] for _ in range(4)]
    together = stepped(weights, grads)
    for index, weight in enumerate(weights):
        (alone,) = stepped([weight], [[step[index]] for step in grads])
        torch.testing.assert_close(together[index], alone, atol=1e-4, rtol=0)


def test_momentum_remembers_earlier_gradients() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(8, 8), torch.randn(8, 8)
    moved = stepped([torch.zeros(8, 8)], [[first], [second]])
    assert not torch.equal(moved[0], stepped([torch.zeros(8, 8)], [[-first], [second]])[0])
    forgotten, plain = (
        stepped([torch.zeros(8, 8)], [[first * scale], [second]], momentum=0.0) for scale in (4, 1)
    )
    torch.testing.assert_close(forgotten, plain)


def test_weight_decay_shrinks_by_the_rate() -> None:
    weight = torch.ones(4, 4)
    (moved,) = stepped([weight], [[torch.zeros(4, 4)]], lr=0.1, weight_decay=0.5)
    torch.testing.assert_close(moved, weight * 0.95)


def test_a_matrix_that_took_no_part_stays() -> None:
    still, moving = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4, 4))
    optimizer = Muon([still, moving], lr=0.1, weight_decay=0.5)
    moving.grad = torch.randn(4, 4)
    optimizer.step()
    assert (still == 1).all() and (moving != 1).any()


def parts(model: Llava) -> dict[str, nn.Module]:
    return {"projector": model.projector, "language_model": model.language_model}


def test_matrices_inside_layers_go_to_muon_and_the_rest_to_adamw(model: Llava) -> None:
    rates = {"projector": 1e-3, "language_model": 2e-3}
    muon, adamw = build_optimizers(parts(model), rates, name="muon", weight_decay=0.1)
    names = {id(p): name for name, p in model.named_parameters()}
    inner, outer = (
        {names[id(p)] for group in optimizer.param_groups for p in group["params"]}
        for optimizer in (muon, adamw)
    )
    assert inner | outer == {n for n in names.values() if not n.startswith("vision_tower")}
    assert not inner & outer
    assert "language_model.layers.0.attention.q_proj.weight" in inner
    assert all(name.endswith("weight") and "norm" not in name for name in inner)
    assert {"language_model.embed_tokens.weight", "language_model.norm.weight"} <= outer
    peaks = [(g["part"], g["peak_lr"], g["weight_decay"]) for g in muon.param_groups]
    assert peaks == [("projector", 1e-3, 0.1), ("language_model", 2e-3, 0.1)]
    assert {g["weight_decay"] for g in adamw.param_groups} == {0.0}


def test_adamw_takes_everything_where_it_is_asked_for(model: Llava) -> None:
    rates = {"projector": 1e-3}
    (adamw,) = build_optimizers(parts(model), rates, name="adamw", weight_decay=0.1)
    taken = [p for group in adamw.param_groups for p in group["params"]]
    assert {id(p) for p in taken} == {id(p) for p in model.projector.parameters()}
    assert {group["weight_decay"] for group in adamw.param_groups} == {0.1}


def test_parts_that_are_not_named_are_frozen(model: Llava) -> None:
    build_optimizers(parts(model), {"projector": 1e-3}, name="muon", weight_decay=0)
    assert all(p.requires_grad for p in model.projector.parameters())
    assert not any(p.requires_grad for p in model.language_model.parameters())


def test_a_part_that_there_is_not_is_named(model: Llava) -> None:
    message = "stage.learn: no part 'projektor'; known here: projector, language_model"
    with pytest.raises(ConfigError, match=message):
        build_optimizers(parts(model), {"projektor": 1e-3}, name="muon", weight_decay=0)
