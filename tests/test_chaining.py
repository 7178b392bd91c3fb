"""One posterior as the prior of the next: in regimes where that is exact, it is exact."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from posthoc_bhpeft import (
    BayesianPeft,
    DenseGGN,
    DiagonalGGN,
    Exact,
    Gaussian,
    KroneckerGGN,
    bayesianize,
)
from posthoc_bhpeft.blocks import discover
from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.likelihood import Categorical, Likelihood
from posthoc_bhpeft.linalg import OperatorSum
from posthoc_bhpeft.predictive import Linearized
from posthoc_bhpeft.prior import GaussianPrior
from tests.hybrid.families import tiny_batch, tiny_loader
from tests.models import hybrid, linear, mlp, pairs, randomize, targets

NOISE = Gaussian(0.4)
DATA = targets((7, 6), 4, batches=4)


class SideBySide(nn.Module):
    """Two linear maps of half the inputs each: linear in the weights, in two separate blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = linear(3, 2), linear(3, 2, seed=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x[:, :3]), self.two(x[:, 3:])], 1)


def to_mode(
    model: nn.Module, loader: Sequence[Any], likelihood: Likelihood, prior: GaussianPrior
) -> nn.Module:
    """Train to the minimum of a quadratic loss `sum nll + penalty`: one step of Newton's method."""
    weights = list(model.parameters())
    loss = prior.penalty(model)
    for inputs, labels in loader:
        loss = loss + likelihood.nll(model(inputs), labels).sum()
    gradient = flat(torch.autograd.grad(loss, weights, create_graph=True))
    hessian = torch.stack(
        [flat(torch.autograd.grad(one, weights, retain_graph=True)) for one in gradient]
    )
    step = torch.linalg.solve(hessian, gradient.detach())
    with torch.no_grad():
        for weight, part in zip(weights, step.split([w.numel() for w in weights]), strict=True):
            weight -= part.reshape(weight.shape)
    return model


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def start() -> GaussianPrior:
    """An isotropic prior, another precision in each block."""
    blocks = discover(SideBySide())
    return GaussianPrior({"one.weight": 1.5, "two.weight": 0.6}, blocks=tuple(blocks))


def learn(prior: GaussianPrior, loader: Sequence[Any], curvature: Any) -> BayesianPeft:
    """Train to the mode under a prior, from anywhere, and fit."""
    model = to_mode(randomize(SideBySide(), seed=len(loader)), loader, NOISE, prior)
    return bayesianize(
        model, loader, likelihood=NOISE, curvature=curvature, prior=prior, progress=False
    )


def chain(
    loader: Sequence[Any], curvature: Any, rounds: int, max_terms: int = 2
) -> list[BayesianPeft]:
    """One posterior a round, each the prior of the next."""
    size, fits, prior = len(loader) // rounds, [], start()
    for index in range(rounds):
        fits.append(learn(prior, loader[index * size : (index + 1) * size], curvature))
        prior = fits[-1].as_prior(max_terms=max_terms)
    return fits


def precision(bayes: BayesianPeft, name: str) -> Tensor:
    """`d I + K + H` as a matrix."""
    prior = bayes.posterior.prior
    total = bayes.posterior.curvature[name].dense()
    if name in prior.carried:
        total = total + prior.carried[name].dense()
    return total + prior.precision[name] * torch.eye(len(total), dtype=torch.float64)


def assert_same_gaussian(one: BayesianPeft, other: BayesianPeft) -> None:
    """Mean, precision and what is computed from them."""
    for block in one.blocks:
        name = block.name
        first, second = one.posterior.mean[name], other.posterior.mean[name]
        assert torch.allclose(first, second, rtol=1e-8, atol=1e-10)
        assert torch.allclose(precision(one, name), precision(other, name), rtol=1e-8, atol=1e-9)
    assert one.posterior.precision_log_determinant() == pytest.approx(
        other.posterior.precision_log_determinant(), rel=1e-8
    )
    inputs = DATA[0][0]
    covariance = [bayes.predict(inputs).covariance for bayes in (one, other)]
    assert torch.allclose(*covariance, rtol=1e-8)


# Kronecker factors are exact here: H = I (x) sum_n x x^T / noise in each block.
EXACT = [DenseGGN(), KroneckerGGN(Exact())]


# ---------------------------------------------------------------- Bayes' rule, a part at a time


@pytest.mark.parametrize("curvature", EXACT, ids=["dense", "Kronecker"])
@pytest.mark.parametrize(("rounds", "max_terms"), [(2, 2), (4, 2), (4, 1)])
def test_learning_in_rounds_is_learning_at_once(curvature, rounds, max_terms):
    last = chain(DATA, curvature, rounds, max_terms)[-1]
    assert_same_gaussian(last, learn(start(), DATA, curvature))


@pytest.mark.parametrize("curvature", EXACT, ids=["dense", "Kronecker"])
@pytest.mark.parametrize("rounds", [2, 4])
def test_the_evidence_of_rounds_adds_up_to_that_of_everything(curvature, rounds):
    parts = [bayes.log_marginal_likelihood() for bayes in chain(DATA, curvature, rounds)]
    whole = learn(start(), DATA, curvature).log_marginal_likelihood()
    assert sum(parts) == pytest.approx(whole, rel=1e-10)
    # Each alone is not: the later ones are given the earlier data.
    alone = [
        learn(start(), part, curvature).log_marginal_likelihood() for part in ([b] for b in DATA)
    ]
    assert abs(sum(alone) - whole) > 0.1


def test_without_the_penalty_it_is_another_mean():
    first = learn(start(), DATA[:2], DenseGGN())
    forgetful = learn(start(), DATA[2:], DenseGGN())
    whole = learn(start(), DATA, DenseGGN())
    chained = bayesianize(
        forgetful.model,
        DATA[2:],
        likelihood=NOISE,
        curvature=DenseGGN(),
        prior=first.as_prior(),
        progress=False,
    )
    name = chained.blocks[0].name
    assert torch.allclose(precision(chained, name), precision(whole, name))
    gap = (chained.posterior.mean[name] - whole.posterior.mean[name]).norm()
    assert float(gap) > 0.01


def test_the_penalty_is_zero_where_the_posterior_stood():
    bayes = learn(start(), DATA, DenseGGN())
    prior = bayes.as_prior()
    loss = prior.penalty(bayes.model)
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-20)
    assert all(float(p.grad.abs().max()) < 1e-8 for p in bayes.model.parameters())


# ---------------------------------------------------------------- forgetting, merging, many terms


def test_forgetting_lets_go_a_share_of_the_precision():
    bayes = learn(start(), DATA, KroneckerGGN())
    prior, faint = bayes.as_prior(), bayes.as_prior(forget=0.25)
    assert faint.precision == {n: pytest.approx(0.75 * d) for n, d in prior.precision.items()}
    for block in bayes.blocks:
        matrix = torch.ones(block.shape, dtype=torch.float64)
        held = 0.75 * prior.matvec(block, matrix)
        assert torch.allclose(faint.matvec(block, matrix), held)
        assert torch.equal(faint.mean[block.name], bayes.posterior.mean[block.name])


@pytest.mark.parametrize("forget", [-0.1, 1.0, 2.0, float("nan")])
def test_all_cannot_be_forgotten(forget):
    with pytest.raises(ConfigError, match=r"forget is .*at least 0 and below 1"):
        learn(start(), DATA, KroneckerGGN()).as_prior(forget=forget)


def many_rounds(rounds: int, max_terms: int, curvature: Any = None) -> BayesianPeft:
    """A chain on a model that is not linear, where Kronecker products do not add up."""
    model, curvature = mlp(4, 3, 3), curvature or KroneckerGGN()
    bayes = bayesianize(model, pairs((9, 4), 3), curvature=curvature, progress=False)
    for index in range(1, rounds):
        model = randomize(copy.deepcopy(model), 0.3, seed=index)
        prior = bayes.as_prior(max_terms=max_terms)
        loader = pairs((9, 4), 3, seed=index)
        bayes = bayesianize(model, loader, curvature=curvature, prior=prior, progress=False)
    return bayes


@pytest.mark.parametrize("max_terms", [1, 2, 3])
def test_the_number_of_terms_is_bounded(max_terms):
    prior = many_rounds(5, max_terms).as_prior(max_terms=max_terms)
    for operator in prior.carried.values():
        assert isinstance(operator, OperatorSum)
        assert len(operator.terms) == max_terms


def test_the_errors_of_merging_are_exact_and_told():
    bayes = many_rounds(3, 2)
    posterior, prior = bayes.posterior, bayes.as_prior(max_terms=2)
    for block in bayes.blocks:
        name = block.name
        whole = posterior.prior.carried[name].dense() + posterior.curvature[name].dense()
        error = float((prior.carried[name].dense() - whole).norm() / whole.norm())
        assert prior.merge_errors[name] == pytest.approx(error, rel=1e-6, abs=1e-7)
    assert max(prior.merge_errors.values()) > 1e-3
    chained = bayesianize(bayes.model, pairs((9, 4), 3), prior=prior, progress=False)
    worst = max(prior.merge_errors, key=prior.merge_errors.__getitem__)
    text = chained.explain()
    assert f"relative error of up to {prior.merge_errors[worst]:.2g} ({worst})" in text


def test_nothing_is_said_of_merging_where_nothing_was_merged():
    bayes = many_rounds(2, 2)
    assert not bayes.posterior.prior.merge_errors
    assert "merged" not in bayes.explain()
    assert f"curvature in {len(bayes.blocks)} of {len(bayes.blocks)} blocks" in bayes.explain()


@pytest.mark.parametrize("curvature", [DiagonalGGN(), DenseGGN()], ids=repr)
def test_diagonal_and_dense_curvature_add_up_without_error(curvature):
    bayes = many_rounds(4, 1, curvature)
    prior = bayes.as_prior(max_terms=1)
    for block in bayes.blocks:
        exact = precision(bayes, block.name)
        floor = prior.precision[block.name] * torch.eye(block.size).double()
        assert torch.allclose(prior.carried[block.name].dense() + floor, exact)


def test_the_exact_parts_of_a_chain_of_many_terms():
    """Matvec, movement and penalty need no eigenbasis, so many terms cost no exactness."""
    bayes = many_rounds(4, 3)
    posterior, moved = bayes.posterior, 0.0
    for block in bayes.blocks:
        matrix = torch.randn(block.shape, dtype=torch.float64, generator=torch.Generator())
        exact = precision(bayes, block.name) @ matrix.flatten()
        assert torch.allclose(posterior.precision_matvec(block, matrix).flatten(), exact)
        gap = (posterior.mean[block.name] - posterior.prior.mean[block.name]).flatten()
        held = precision(bayes, block.name) - posterior.curvature[block.name].dense()
        moved += float(gap @ held @ gap)
    assert posterior.squared_movement() == pytest.approx(moved, rel=1e-9)
    assert posterior.prior.penalty(bayes.model).item() == pytest.approx(0.5 * moved, rel=1e-9)


def test_with_prior_decomposes_again_where_curvature_comes_or_goes():
    bayes = many_rounds(2, 2)
    plain = GaussianPrior.isotropic(bayes.blocks, 3.0)
    without = bayes.posterior.with_prior(plain)
    for block in bayes.blocks:
        exact = bayes.posterior.curvature[block.name].decompose()
        assert torch.equal(without.bases[block.name].eigenvalues, exact.eigenvalues)
    again = without.with_prior(bayes.posterior.prior)
    assert again.log_marginal_likelihood() == bayes.log_marginal_likelihood()


# ---------------------------------------------------------------- on real structures


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_hybrid_is_chained(family):
    model = hybrid(family)
    first = bayesianize(model, tiny_loader(model), progress=False)
    prior = first.as_prior()
    later = randomize(copy.deepcopy(model), 0.05, seed=3)
    loader = [tiny_batch(later, seed=8)]
    bayes = bayesianize(later, loader, prior=prior, progress=False)
    batch = tiny_batch(later, seed=9)
    alone = first.posterior.with_prior(GaussianPrior(first.posterior.prior.precision))
    assert bayes.posterior.prior.carried.keys() == {block.name for block in bayes.blocks}
    # More data, less uncertainty: the chained posterior knows more than the new rows alone say.
    fresh = bayesianize(later, loader, prior=GaussianPrior(alone.prior.precision), progress=False)
    variances = [b.predict(batch, Linearized()).covariance for b in (bayes, fresh)]
    traces = [v.diagonal(dim1=-2, dim2=-1).sum(-1) for v in variances]
    assert bool((traces[0] < traces[1]).all())


def test_a_head_that_grew_is_fitted_under_the_grown_prior():
    old = mlp(4, 5, 2)
    first = bayesianize(old, pairs((9, 4), 2), progress=False)
    new = mlp(4, 5, 3)
    with torch.no_grad():
        new[0].load_state_dict(old[0].state_dict())
        new[2].weight[:2] = old[2].weight
        new[2].bias[:2] = old[2].bias
    loader = pairs((9, 4), 3, seed=1)
    with pytest.raises(ConfigError, match=r"\(3, 5\) in the model, \(2, 5\).*prior\.grown"):
        bayesianize(new, loader, prior=first.as_prior(), progress=False)
    bayes = bayesianize(new, loader, prior=first.as_prior().grown(new), progress=False)
    assert bayes.predict(loader[0]).probabilities.shape == (9, 3)
    assert bayes.posterior.squared_movement() == pytest.approx(0.0, abs=1e-12)


# ---------------------------------------------------------------- what is refused


def test_another_model_is_refused():
    prior = bayesianize(mlp(4, 3, 3), pairs((9, 4), 3), progress=False).as_prior()
    with pytest.raises(ConfigError, match=r"prior= is about other blocks.*same model, tuned on"):
        bayesianize(mlp(4, 6, 3), pairs((9, 4), 3), prior=prior, progress=False)


def test_noise_that_is_to_be_learnt_is_refused():
    first = learn(start(), DATA, KroneckerGGN())
    with pytest.raises(ConfigError, match=r"likelihood=bayes\.likelihood"):
        bayesianize(
            first.model, DATA, likelihood=Gaussian(), prior=first.as_prior(), progress=False
        )
    assert first.likelihood == NOISE != Categorical()
