"""A Gaussian prior against dense quadratic forms: penalty, gradient, tempering, growing, errors."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from posthoc_bhpeft.blocks import Block, discover
from posthoc_bhpeft.curvature import KroneckerGGN
from posthoc_bhpeft.errors import ConfigError, ModelError
from posthoc_bhpeft.linalg import (
    BlockOperator,
    DenseOperator,
    DiagonalOperator,
    KroneckerOperator,
    OperatorSum,
)
from posthoc_bhpeft.prior import GaussianPrior
from tests.hybrid.families import tiny_loader
from tests.models import hybrid, mlp, posterior_of, prefix, randomize, seeded

FLOORS = (0.7, 1.9, 0.3, 4.0)


def positive(size: int, seed: int) -> Tensor:
    """A random positive definite matrix."""
    root = torch.randn(size, size, generator=seeded(seed), dtype=torch.float64)
    return root @ root.T / size + 0.1 * torch.eye(size, dtype=torch.float64)


def operator_of(structure: str, shape: tuple[int, int], seed: int) -> BlockOperator:
    """One random operator: "K" for Kronecker, "D" for diagonal, "F" for full."""
    p, q = shape
    if structure == "K":
        return KroneckerOperator(positive(p, seed), positive(q, seed + 1))
    if structure == "D":
        return DiagonalOperator(positive(p * q, seed).diagonal().reshape(p, q).clone())
    return DenseOperator(positive(p * q, seed), p)


def prior_of(blocks: Sequence[Block], structures: str) -> GaussianPrior:
    """Random means, floors that differ, and a sum of random operators in each block."""
    means, carried = {}, {}
    for index, block in enumerate(blocks):
        noise = torch.randn(block.shape, generator=seeded(index), dtype=torch.float64)
        means[block.name] = noise
        terms = [operator_of(s, block.shape, 7 * index + 3 * i) for i, s in enumerate(structures)]
        if terms:
            carried[block.name] = OperatorSum(tuple(terms))
    floors = {block.name: FLOORS[i % len(FLOORS)] for i, block in enumerate(blocks)}
    return GaussianPrior(floors, means, carried, tuple(blocks))


def dense(prior: GaussianPrior, block: Block) -> Tensor:
    """`Lambda0` of a block as a matrix."""
    matrix = prior.precision[block.name] * torch.eye(block.size, dtype=torch.float64)
    carried = prior.carried.get(block.name)
    return matrix if carried is None else matrix + carried.dense()


def displacement(prior: GaussianPrior, model: nn.Module, block: Block) -> Tensor:
    """`vec(theta - mu0)`."""
    weights = block.view.read(dict(model.named_parameters())[block.parameter].detach())
    return (weights.double() - prior.mean[block.name]).flatten()


def nats(prior: GaussianPrior, model: nn.Module) -> float:
    """The penalty as a number."""
    return prior.penalty(model).item()


def gradients(prior: GaussianPrior, model: nn.Module) -> dict[str, Tensor]:
    """Gradient of the penalty by block name, through autograd."""
    model.zero_grad()
    prior.penalty(model).backward()
    parameters = dict(model.named_parameters())
    return {b.name: b.view.read(parameters[b.parameter].grad) for b in prior.blocks}


# ---------------------------------------------------------------- the penalty


@pytest.mark.parametrize("structures", ["", "K", "KK", "KKK", "D", "KD", "F", "KF"])
def test_the_penalty_and_its_gradient_are_those_of_the_dense_quadratic_form(structures):
    model = mlp(3, 4, 2)
    prior = prior_of(discover(model), structures)
    found = gradients(prior, model)
    value = 0.0
    for block in prior.blocks:
        moved, precision = displacement(prior, model, block), dense(prior, block)
        value += 0.5 * float(moved @ precision @ moved)
        assert torch.allclose(found[block.name].flatten(), precision @ moved, rtol=1e-12)
    penalty = prior.penalty(model)
    assert penalty.dtype == torch.float64
    assert penalty.item() == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("make", [hybrid, lambda: hybrid("llama"), prefix])
def test_the_penalty_reads_every_kind_of_block(make):
    model = make()
    posterior = posterior_of(model, tiny_loader(model), curvature=KroneckerGGN())
    prior = posterior.as_prior()
    assert nats(prior, model) == pytest.approx(0.0, abs=1e-20)
    randomize(model, 0.1, seed=5)
    found = gradients(prior, model)
    assert found.keys() == {block.name for block in discover(model)}
    for block in prior.blocks:
        exact = dense(prior, block) @ displacement(prior, model, block)
        assert torch.allclose(found[block.name].flatten(), exact, rtol=1e-9, atol=1e-12)


def test_blocks_without_a_mean_are_pulled_to_zero():
    model = mlp(3, 2)
    prior = GaussianPrior.isotropic(discover(model), 3.0)
    squared = sum(float(p.detach().square().sum()) for p in model.parameters())
    assert nats(prior, model) == pytest.approx(1.5 * squared)


def test_under_autocast_the_penalty_stays_in_float32():
    model = mlp(3, 4, 2).float()
    wide = prior_of(discover(model), "KK")
    prior = GaussianPrior(
        wide.precision,
        {name: mean.float() for name, mean in wide.mean.items()},
        {name: single(operator) for name, operator in wide.carried.items()},
        wide.blocks,
    )
    outside = prior.penalty(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = prior.penalty(model)
        assert torch.is_autocast_enabled("cpu")
    assert inside.dtype == torch.float32
    assert torch.equal(inside, outside)
    assert inside.item() == pytest.approx(nats(wide, model.double()), rel=1e-5)


def test_bfloat16_weights_are_penalised_in_float32():
    wide = mlp(3, 4, 2).float()
    blocks = discover(wide)
    carried = {b.name: single(operator_of("K", b.shape, 3)) for b in blocks}
    means = {b.name: torch.full(b.shape, 0.1) for b in blocks}
    prior = GaussianPrior({b.name: 0.7 for b in blocks}, means, carried, blocks)
    narrow = copy.deepcopy(wide).to(torch.bfloat16)
    same = copy.deepcopy(narrow).float()
    penalty = prior.penalty(narrow)
    assert penalty.dtype == torch.float32
    assert penalty.item() == pytest.approx(nats(prior, same), rel=1e-6)
    rounded, exact = gradients(prior, narrow), gradients(prior, same)
    for name, gradient in rounded.items():
        assert gradient.dtype == torch.bfloat16
        assert torch.equal(gradient, exact[name].bfloat16())


def single(operator: BlockOperator) -> BlockOperator:
    """A Kronecker operator, or a sum of some, in float32."""
    terms = operator.terms if isinstance(operator, OperatorSum) else (operator,)
    return OperatorSum(
        tuple(KroneckerOperator(term.left.float(), term.right.float()) for term in terms)
    )


# ---------------------------------------------------------------- other priors made from it


def test_tempering_multiplies_the_whole_precision():
    model = mlp(3, 4, 2)
    prior = prior_of(discover(model), "KK")
    held = prior.tempered(2.5)
    assert nats(held, model) == pytest.approx(2.5 * nats(prior, model))
    for block in prior.blocks:
        assert torch.allclose(dense(held, block), 2.5 * dense(prior, block))
        assert torch.equal(held.mean[block.name], prior.mean[block.name])


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan")])
def test_a_weight_must_be_positive(weight):
    with pytest.raises(ConfigError, match=r"weight is .*above 0"):
        GaussianPrior({"w": 1.0}).tempered(weight)


def test_for_training_weighs_the_curvature_and_sets_the_floor():
    model = mlp(3, 4, 2)
    prior = prior_of(discover(model), "KK")
    guard = prior.for_training(weight=7.0, floor=0.2)
    for block in prior.blocks:
        identity = torch.eye(block.size, dtype=torch.float64)
        exact = 7.0 * prior.carried[block.name].dense() + 0.2 * identity
        torch.testing.assert_close(dense(guard, block), exact)
        assert guard.mean[block.name] is prior.mean[block.name]


def test_another_floor_leaves_the_rest():
    prior = prior_of(discover(mlp(3, 4, 2)), "K")
    other = prior.with_floor(9.0)
    for block in prior.blocks:
        gap = dense(other, block) - dense(prior, block)
        lift = (9.0 - prior.precision[block.name]) * torch.eye(block.size).double()
        assert torch.allclose(gap, lift)


def grown_head(model: nn.Sequential, n_outputs: int) -> nn.Sequential:
    """The same model, its last layer with further rows at the end."""
    old = model[-1]
    new = nn.Linear(old.in_features, n_outputs, dtype=torch.float64)
    with torch.no_grad():
        new.weight[: old.out_features] = old.weight
        new.bias[: old.out_features] = old.bias
    return nn.Sequential(*list(model[:-1]), new)


@pytest.mark.parametrize("structures", ["", "K", "KK", "D", "F"])
def test_a_grown_head_keeps_its_old_rows_and_knows_the_floor_about_new_ones(structures):
    model = mlp(3, 4, 2)
    prior = prior_of(discover(model), structures)
    larger = grown_head(model, 5)
    grown = prior.grown(larger)
    grown.check_blocks(discover(larger))
    # New rows are no movement yet.
    assert nats(grown, larger) == pytest.approx(nats(prior, model))
    for old, new in zip(prior.blocks, grown.blocks, strict=True):
        before, after = dense(prior, old), dense(grown, new)
        assert torch.allclose(after[: old.size, : old.size], before)
        floor = prior.precision[old.name] * torch.eye(new.size - old.size).double()
        assert torch.allclose(after[old.size :, old.size :], floor)
        assert not after[old.size :, : old.size].any()
    assert torch.equal(grown.mean["2.weight"][2:], larger[-1].weight.detach()[2:])
    assert torch.equal(grown.mean["2.weight"][:2], prior.mean["2.weight"])


def test_an_isotropic_prior_around_zero_grows_around_zero_and_the_new_rows():
    model = mlp(3, 4, 2)
    prior = GaussianPrior.isotropic(discover(model), 2.0)
    larger = grown_head(model, 3)
    grown = prior.grown(larger)
    assert nats(grown, larger) == pytest.approx(nats(prior, model))


def test_a_head_that_shrank_cannot_grow():
    prior = prior_of(discover(mlp(3, 4, 3)), "K")
    with pytest.raises(ModelError, match=r"'2.weight' has shape \(3, 4\).*\(2, 4\) in the model"):
        prior.grown(mlp(3, 4, 2))


def test_a_model_without_the_block_cannot_grow():
    prior = prior_of(discover(mlp(3, 4, 3)), "K")
    with pytest.raises(ModelError, match=r"'2.weight' has shape \(3, 4\).*None in the model"):
        prior.grown(mlp(3, 4))


# ---------------------------------------------------------------- errors


def test_a_prior_without_blocks_has_no_penalty():
    with pytest.raises(ConfigError, match=r"does not know its blocks.*bayes\.as_prior"):
        GaussianPrior({"w": 1.0}).penalty(mlp(3, 2))


def test_a_wrapped_model_is_named():
    model = mlp(3, 2)
    prior = prior_of(discover(model), "K")
    with pytest.raises(ModelError, match=r"'0.weight', which the model does not have.*unwrap"):
        prior.penalty(nn.Sequential(model))


def test_a_penalty_for_a_head_that_has_grown():
    model = mlp(3, 4, 2)
    prior = prior_of(discover(model), "K")
    with pytest.raises(ModelError, match=r"'2.weight' has shape \(5, 4\).*prior\.grown\(model\)"):
        prior.penalty(grown_head(model, 5))


def test_blocks_of_the_same_model_are_accepted():
    blocks = discover(mlp(3, 4, 2))
    prior_of(blocks, "KK").check_blocks(discover(mlp(3, 4, 2, seed=1)))
    GaussianPrior.isotropic(blocks, 1.0).check_blocks(blocks)


@pytest.mark.parametrize("structures", ["", "K"])
def test_blocks_of_other_shapes_are_refused(structures):
    prior = prior_of(discover(mlp(3, 4, 2)), structures)
    with pytest.raises(ConfigError, match=r"'2.weight' has shape \(3, 4\) in the model, \(2, 4\)"):
        prior.check_blocks(discover(mlp(3, 4, 3)))


def test_other_shapes_are_refused_where_there_is_neither_mean_nor_curvature():
    prior = GaussianPrior.isotropic(discover(mlp(3, 4, 2)), 1.0)
    with pytest.raises(ConfigError, match=r"'2.weight' has shape \(3, 4\) in the model, \(2, 4\)"):
        prior.check_blocks(discover(mlp(3, 4, 3)))


def test_missing_and_surplus_blocks_are_named():
    prior = prior_of(discover(mlp(3, 4, 2)), "K")
    with pytest.raises(ConfigError, match=r"'2.weight' has shape none in the model, \(2, 4\)"):
        prior.check_blocks(discover(mlp(3, 4)))
    with pytest.raises(ConfigError, match=r"'4.weight' has shape \(2, 2\) in the model, none"):
        prior.check_blocks(discover(mlp(3, 4, 2, 2)))


def test_it_says_what_it_is_in_one_line():
    prior = GaussianPrior({"a": 2.0, "b": 2.0})
    assert repr(prior) == "GaussianPrior(2 blocks, precision 2)"
    carrying = GaussianPrior({"a": 0.5, "b": 12.25}, carried={"a": object()})
    assert (
        repr(carrying) == "GaussianPrior(2 blocks, precision 0.5 to 12.2, carried curvature of 1)"
    )
