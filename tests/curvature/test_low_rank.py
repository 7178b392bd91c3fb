"""`KroneckerGGN(rank=...)`: the whole factor's numbers where the rank suffices, and its cost."""

import pytest
import torch

from posthoc_bhpeft.api import bayesianize
from posthoc_bhpeft.blocks import discover
from posthoc_bhpeft.blocks.products import find_products
from posthoc_bhpeft.curvature import KroneckerGGN, fit_curvature
from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.likelihood import Categorical
from posthoc_bhpeft.linalg import LowRankFactor
from posthoc_bhpeft.selection import FixedPrecision
from tests.contracts import check_curvature
from tests.hybrid.families import tiny_loader
from tests.models import lora, mlp, pairs

WIDE = 40
ENOUGH = KroneckerGGN(rank=12, wide=WIDE)  # six rows, two contrasts each


def wide_fit(curvature, seed=0):
    return bayesianize(
        mlp(WIDE, 5, 3, seed=seed),
        pairs((3, WIDE), 3, seed=seed),
        curvature=curvature,
        prior=FixedPrecision(0.5),
        progress=False,
    )


def fit(model, loader, estimator, products=()):
    blocks = discover(model)
    return fit_curvature(
        model, blocks, loader, Categorical(), estimator, products=products
    ).operators


def test_the_contract_of_estimators_holds():
    check_curvature(KroneckerGGN(rank=1, wide=4))


def test_only_wide_sides_are_kept_in_low_rank():
    operators = wide_fit(ENOUGH).posterior.curvature
    assert isinstance(operators["0.weight"].right, LowRankFactor)
    assert not isinstance(operators["0.weight"].left, LowRankFactor)
    assert operators["0.weight"].right.vectors.shape == (WIDE, 6)  # its true rank
    assert not isinstance(operators["2.weight"].right, LowRankFactor)


def test_from_the_true_rank_on_the_posterior_is_that_of_whole_factors():
    ours, theirs = wide_fit(ENOUGH), wide_fit(KroneckerGGN())
    assert ours.log_marginal_likelihood() == pytest.approx(theirs.log_marginal_likelihood())
    batch = pairs((4, WIDE), 3, seed=5)[0]
    mine, other = ours.predict(batch), theirs.predict(batch)
    assert torch.allclose(mine.covariance, other.covariance)
    assert torch.allclose(mine.probabilities, other.probabilities)


def test_samples_have_the_posterior_covariance():
    """Whitened by the whole factors' precision, draws have unit second moments."""
    posterior = wide_fit(KroneckerGGN(rank=2, wide=WIDE)).posterior
    block = posterior.blocks[0]
    draws = posterior.sample(4000, torch.Generator().manual_seed(0))[block.name]
    moved = (draws - posterior.mean[block.name]).flatten(1)
    matrix = posterior.curvature[block.name].dense()
    precision = matrix + 0.5 * torch.eye(len(matrix), dtype=torch.float64)
    energy = torch.einsum("si,ij,sj->s", moved, precision, moved)
    error = (2 * block.size / 4000) ** 0.5
    assert abs(float(energy.mean()) - block.size) < 4 * error


def test_low_rank_carries_on_as_a_prior():
    """Two rounds: penalty and posterior are those of whole factors."""
    chained = []
    for curvature in (ENOUGH, KroneckerGGN()):
        prior = wide_fit(curvature).as_prior(max_terms=2)
        second = bayesianize(
            mlp(WIDE, 5, 3, seed=1),
            pairs((3, WIDE), 3, seed=2),
            curvature=curvature,
            prior=prior,
            progress=False,
        )
        moved = second.posterior.prior.penalty(second.model)
        chained.append((float(moved.detach()), second.posterior))
    (ours, mine), (theirs, other) = chained
    assert ours == pytest.approx(theirs)
    block = mine.blocks[0]
    matrix = torch.randn(block.shape, dtype=torch.float64, generator=torch.Generator())
    assert torch.allclose(
        mine.precision_matvec(block, matrix), other.precision_matvec(block, matrix)
    )
    assert abs(mine.log_marginal_likelihood() / other.log_marginal_likelihood() - 1) < 0.01


def test_more_rounds_than_terms_stay_in_their_rank():
    curvature = KroneckerGGN(rank=3, wide=WIDE)
    prior = wide_fit(curvature).as_prior()
    for seed in (1, 2):
        model, loader = mlp(WIDE, 5, 3, seed=seed), pairs((3, WIDE), 3, seed=seed)
        bayes = bayesianize(model, loader, curvature=curvature, prior=prior, progress=False)
        prior = bayes.as_prior(max_terms=1)
    (term,) = prior.carried["0.weight"].terms
    assert len(term.right.values) == 3


def test_it_is_saved_and_loaded(tmp_path):
    from posthoc_bhpeft import BayesianPeft

    model = lora()
    curvature = KroneckerGGN(rank=2, wide=8)
    loader = tiny_loader(model)
    bayes = bayesianize(model, loader, curvature=curvature, progress=False)
    bayes.save_pretrained(tmp_path)
    again = BayesianPeft.from_pretrained(tmp_path, model=model)
    assert again.curvature == curvature
    for name, operator in bayes.posterior.curvature.items():
        assert torch.equal(again.posterior.curvature[name].dense(), operator.dense()), name
    before, after = bayes.predict(loader[0]), again.predict(loader[0])
    assert torch.equal(before.probabilities, after.probabilities)


def test_products_wide_on_both_sides_never_become_a_matrix():
    model = lora()
    loader = tiny_loader(model)
    products = find_products(discover(model))
    ours = fit(model, loader, KroneckerGGN(rank=4, wide=16), products)
    whole = fit(model, loader, KroneckerGGN(), products)
    for product in products:
        one = ours[product.name]
        assert isinstance(one.left, LowRankFactor)
        assert isinstance(one.right, LowRankFactor)
        assert torch.allclose(one.trace(), whole[product.name].trace())


@pytest.mark.parametrize("rank", [0, -1, 342])
def test_a_rank_that_saves_nothing_is_refused(rank):
    with pytest.raises(ConfigError, match=r"rank.*at least 1.*wide must be above 3 rank"):
        KroneckerGGN(rank=rank)


@pytest.mark.parametrize("seed", range(3))
def test_keeping_the_trace_is_closer_to_the_whole_factor(seed):
    """The published form, without it, takes every direction but a few for unseen."""
    whole = wide_fit(KroneckerGGN(), seed).posterior.curvature["0.weight"].right
    narrow = wide_fit(KroneckerGGN(rank=3, wide=WIDE), seed).posterior
    factor = narrow.curvature["0.weight"].right
    bare = LowRankFactor(factor.vectors, factor.values, torch.zeros_like(factor.rest))
    assert torch.allclose(factor.trace(), whole.trace())
    assert (factor.full() - whole).norm() < (bare.full() - whole).norm()
    exact, kept, without = (
        float(torch.logdet(m + 0.01 * torch.eye(WIDE).double()))
        for m in (whole, factor.full(), bare.full())
    )
    assert without < exact < kept
