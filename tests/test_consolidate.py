"""Consolidation: the mean goes where the two quadratics of a chained posterior ask it to."""

from __future__ import annotations

import pytest
import torch

from posthoc_bhpeft import KroneckerGGN
from posthoc_bhpeft.linalg import OperatorSum
from posthoc_bhpeft.merging.consolidate import consolidated
from posthoc_bhpeft.prior import GaussianPrior
from tests.models import mlp, pairs, posterior_of, seeded

FLOOR = 0.3


@pytest.fixture(params=[KroneckerGGN(), KroneckerGGN(rank=1, wide=4)], ids=["whole", "low rank"])
def posterior(request):
    """Of a model whose weights lie off the mean of a prior that carries two terms."""
    generator = seeded(3)
    first = posterior_of(mlp(4, 5, 3), pairs((8, 4), 3), curvature=request.param)
    mean = {
        name: weights + torch.randn(weights.shape, generator=generator, dtype=weights.dtype)
        for name, weights in first.mean.items()
    }
    carried = {
        name: OperatorSum((operator, operator.scale(3.0)))
        for name, operator in first.curvature.items()
    }
    prior = GaussianPrior(dict(first.prior.precision), mean, carried, first.blocks)
    return first.with_prior(prior)


def dense_mean(posterior, block):
    """The minimum of the two quadratics, from dense matrices."""
    identity = torch.eye(block.size, dtype=torch.float64)
    held = FLOOR * identity + posterior.prior.carried[block.name].dense().double()
    seen = posterior.curvature[block.name].dense().double()
    pulls = held @ posterior.prior.mean[block.name].double().flatten()
    pulls = pulls + seen @ posterior.mean[block.name].double().flatten()
    return torch.linalg.solve(held + seen, pulls).reshape(block.shape)


def test_the_mean_is_the_minimum_of_both_quadratics(posterior):
    moved = consolidated(posterior, floor=FLOOR)
    for block in posterior.blocks:
        exact = dense_mean(posterior, block)
        distance = (exact - posterior.mean[block.name]).norm()
        assert (moved.mean[block.name].double() - exact).norm() < 1e-3 * distance


def test_the_log_likelihood_falls_by_the_quadratic(posterior):
    moved = consolidated(posterior, floor=FLOOR)
    loss = 0.0
    for block in posterior.blocks:
        step = (moved.mean[block.name] - posterior.mean[block.name]).double().flatten()
        loss += 0.5 * float(step @ posterior.curvature[block.name].dense().double() @ step)
    assert loss > 0
    assert moved.log_likelihood == pytest.approx(posterior.log_likelihood - loss, rel=1e-6)


def test_at_the_prior_mean_nothing_moves(posterior):
    prior = GaussianPrior(
        posterior.prior.precision, posterior.mean, posterior.prior.carried, posterior.blocks
    )
    moved = consolidated(posterior.with_prior(prior), floor=FLOOR)
    for name, mean in posterior.mean.items():
        assert torch.equal(moved.mean[name], mean)
