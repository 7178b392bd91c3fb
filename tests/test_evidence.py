"""The evidence against grids, fixed points and exact Gaussian integrals."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from posthoc_bhpeft.api import bayesianize
from posthoc_bhpeft.blocks import Kind
from posthoc_bhpeft.evidence import (
    HIGHEST,
    LOWEST,
    BlockSpectrum,
    LaplaceEvidence,
    best_precision,
    bisect_log,
)
from posthoc_bhpeft.likelihood import Gaussian
from posthoc_bhpeft.selection import FixedPrecision, Grouping, MarginalLikelihood
from tests.models import linear, mlp, pairs, seeded, targets


def spectrum(size=20, seed=0, kind=Kind.LORA):
    generator = seeded(seed)
    values = torch.randn(size, generator=generator, dtype=torch.float64).mul(2).exp()
    movement = torch.randn(size, generator=generator, dtype=torch.float64).square()
    return BlockSpectrum(kind, values, movement)


def evidence(*spectra, **kwargs):
    named = {f"block {index}": one for index, one in enumerate(spectra)}
    return LaplaceEvidence(named, -12.5, 30, 2, **kwargs)


# ---------------------------------------------------------------- the evidence itself


def test_log_evidence_by_the_formula():
    one, d = spectrum(), 0.7
    penalty = d * one.squared_movement.sum() + (one.eigenvalues + d).log().sum() - 20 * math.log(d)
    value = evidence(one).log_marginal_likelihood({"block 0": d})
    assert value == pytest.approx(-12.5 - 0.5 * float(penalty), rel=1e-12)


def test_each_block_has_its_own_precision():
    both = evidence(spectrum(), spectrum(seed=1))
    alone = [evidence(spectrum(seed=seed)) for seed in (0, 1)]
    value = both.log_marginal_likelihood({"block 0": 0.5, "block 1": 3.0})
    parts = [
        one.log_marginal_likelihood({"block 0": d})
        for one, d in zip(alone, (0.5, 3.0), strict=True)
    ]
    assert value == pytest.approx(sum(parts) + 12.5)


def test_effective_parameters_lie_between_none_and_all():
    one = evidence(spectrum())
    gamma = [one.effective_parameters({"block 0": d})["block 0"] for d in (1e-12, 1.0, 1e12)]
    assert gamma[0] == pytest.approx(20)
    assert 1 < gamma[1] < 19
    assert gamma[2] == pytest.approx(0, abs=1e-6)


def test_a_tiny_eigenvalue_beside_a_large_precision_is_not_lost():
    small = BlockSpectrum(Kind.LORA, torch.full((3,), 1e-9).double(), torch.zeros(3).double())
    value = evidence(small).log_marginal_likelihood({"block 0": 1e8})
    assert value + 12.5 == pytest.approx(-1.5e-17, abs=1e-14)


# ---------------------------------------------------------------- the best precision


@pytest.mark.parametrize("seed", range(4))
def test_the_best_precision_is_a_maximum(seed):
    blocks = [spectrum(seed=seed), spectrum(7, seed=seed + 10)]
    both, best = evidence(*blocks), best_precision(blocks)

    def value(d):
        return both.log_marginal_likelihood(dict.fromkeys(both.spectra, d))

    grid = [value(10 ** (k / 50)) for k in range(-400, 400)]
    assert value(best) >= max(grid)
    assert value(best) - max(grid) < 0.05


@pytest.mark.parametrize("seed", range(4))
def test_the_best_precision_is_mackays_fixed_point(seed):
    one = spectrum(seed=seed)
    d = best_precision([one])
    gamma = evidence(one).effective_parameters({"block 0": d})["block 0"]
    assert d * float(one.squared_movement.sum()) == pytest.approx(gamma, rel=1e-9)


def test_the_best_precision_by_hand():
    # P = 4 equal eigenvalues 2 and squared movement 4 in all: 4 * 2 / (2 + d) = 4 d.
    one = BlockSpectrum(Kind.LORA, torch.full((4,), 2.0).double(), torch.ones(4).double())
    assert best_precision([one]) == pytest.approx(math.sqrt(3) - 1)


def test_weights_that_did_not_move_get_the_highest_precision():
    still = BlockSpectrum(Kind.LORA, torch.ones(3).double(), torch.zeros(3).double())
    assert best_precision([still]) == pytest.approx(HIGHEST)


def test_weights_that_the_data_do_not_see_get_the_lowest_precision():
    blind = BlockSpectrum(Kind.LORA, torch.zeros(3).double(), torch.ones(3).double())
    assert best_precision([blind]) == pytest.approx(LOWEST)


def test_bisection_finds_a_zero_over_twenty_decades():
    for zero in (1e-7, 3.0, 1e11):
        assert bisect_log(lambda d, z=zero: z - d) == pytest.approx(zero, rel=1e-9)


# ---------------------------------------------------------------- exact where the model is linear


def regression(noise=0.3, precision=0.8, n_inputs=3):
    """A linear model at its posterior mean, its data, and the exact evidence by a Gaussian."""
    inputs, labels = targets((12, n_inputs), 1, batches=1)[0]
    hessian = inputs.T @ inputs / noise + precision * torch.eye(n_inputs).double()
    model = linear(n_inputs, 1)
    with torch.no_grad():
        model.weight.copy_(torch.linalg.solve(hessian, inputs.T @ labels / noise).T)
    covariance = noise * torch.eye(12).double() + inputs @ inputs.T / precision
    exact = MultivariateNormal(torch.zeros(12).double(), covariance).log_prob(labels[:, 0])
    return model, [(inputs, labels)], float(exact)


@pytest.mark.parametrize(("noise", "precision"), [(0.3, 0.8), (2.0, 0.01), (0.05, 30.0)])
def test_the_evidence_of_a_linear_model_is_the_gaussian_integral(noise, precision):
    model, loader, exact = regression(noise, precision)
    bayes = bayesianize(
        model,
        loader,
        likelihood=Gaussian(noise),
        prior=FixedPrecision(precision),
        progress=False,
    )
    assert bayes.log_marginal_likelihood() == pytest.approx(exact, rel=1e-10)


def test_away_from_the_mode_the_evidence_is_lower():
    model, loader, exact = regression()
    with torch.no_grad():
        model.weight.add_(0.1)
    bayes = bayesianize(
        model, loader, likelihood=Gaussian(0.3), prior=FixedPrecision(0.8), progress=False
    )
    assert bayes.log_marginal_likelihood() < exact - 0.1


# ---------------------------------------------------------------- noise


def fitted_at(noise, model, loader, precision=1.3):
    return bayesianize(
        model,
        loader,
        likelihood=Gaussian(noise),
        prior=FixedPrecision(precision),
        progress=False,
    )


def unit_evidence(model, loader):
    posterior = fitted_at(1.0, model, loader).posterior
    found = posterior.evidence()
    return LaplaceEvidence(
        found.spectra, found.log_likelihood, found.n_rows, found.n_outputs, learns_noise=True
    )


@pytest.mark.parametrize("noise", [0.1, 1.0, 7.0])
def test_evidence_at_another_noise_is_that_of_a_fit_at_that_noise(noise):
    model, loader = mlp(3, 4, 2), targets((8, 3), 2)
    moved = unit_evidence(model, loader).at_noise(noise)
    fitted = fitted_at(noise, model, loader).posterior.evidence()
    assert moved.log_likelihood == pytest.approx(fitted.log_likelihood)
    for name, one in fitted.spectra.items():
        assert torch.allclose(
            moved.spectra[name].eigenvalues.sort().values, one.eigenvalues.sort().values
        )
    precision = dict.fromkeys(fitted.spectra, 1.3)
    value = moved.log_marginal_likelihood(precision)
    assert value == pytest.approx(fitted.log_marginal_likelihood(precision))


def test_the_squared_error_is_read_from_the_log_likelihood():
    model, loader = mlp(3, 4, 2), targets((8, 3), 2)
    exact = sum(float((model(x) - y).square().sum().detach()) for x, y in loader)
    assert unit_evidence(model, loader).squared_error == pytest.approx(exact)


def test_evidence_that_does_not_learn_the_noise_stays_as_it_is():
    fixed = evidence(spectrum())
    assert fixed.at_noise(3.0) is fixed


def learnt(per=Grouping.MODEL):
    model, loader = mlp(3, 4, 2), targets((30, 3), 2)
    bayes = bayesianize(
        model, loader, likelihood=Gaussian(), prior=MarginalLikelihood(per), progress=False
    )
    return model, loader, bayes


def test_the_learnt_noise_is_mackays_fixed_point():
    model, loader, bayes = learnt()
    posterior, noise = bayes.posterior, bayes.likelihood.noise_variance
    gamma = sum(posterior.evidence().effective_parameters(posterior.prior.precision).values())
    squared = sum(float((model(x) - y).square().sum().detach()) for x, y in loader)
    assert noise == pytest.approx(squared / (2 * 60 - gamma), rel=1e-6)


def test_the_learnt_noise_and_precision_are_a_maximum_together():
    model, loader, bayes = learnt()
    unit, best = unit_evidence(model, loader), bayes.log_marginal_likelihood()
    (d,) = set(bayes.posterior.prior.precision.values())
    noise = bayes.likelihood.noise_variance
    for steps in (-10, -3, -1, 0, 1, 3, 10):
        for other in (-10, -3, -1, 0, 1, 3, 10):
            at = unit.at_noise(noise * 1.05**steps)
            value = at.log_marginal_likelihood(dict.fromkeys(at.spectra, d * 1.05**other))
            assert value <= best + 1e-9


def test_the_posterior_at_the_learnt_noise_is_that_of_a_fit_at_it():
    model, loader, bayes = learnt()
    (d,) = set(bayes.posterior.prior.precision.values())
    fitted = fitted_at(bayes.likelihood.noise_variance, model, loader, d)
    assert bayes.log_marginal_likelihood() == pytest.approx(fitted.log_marginal_likelihood())
    for block in bayes.blocks:
        assert torch.allclose(
            bayes.posterior.curvature[block.name].dense(),
            fitted.posterior.curvature[block.name].dense(),
        )
        variances = bayes.posterior.variances(block).sort(dim=0).values
        assert torch.allclose(variances, fitted.posterior.variances(block).sort(dim=0).values)


def test_a_true_noise_is_found_again():
    generator = seeded(3)
    truth = linear(4, 1)
    inputs = torch.randn(400, 4, generator=generator, dtype=torch.float64)
    noise = 0.5 * torch.randn(400, 1, generator=generator, dtype=torch.float64)
    labels = truth(inputs).detach() + noise
    model = linear(4, 1, seed=5)
    with torch.no_grad():
        model.weight.copy_(torch.linalg.lstsq(inputs, labels).solution.T)
    bayes = bayesianize(
        model,
        [(inputs, labels)],
        likelihood=Gaussian(),
        prior=MarginalLikelihood(),
        progress=False,
    )
    # The standard error of a variance from 400 rows is 7 %.
    assert bayes.likelihood.noise_variance == pytest.approx(0.25, rel=0.25)


def test_with_more_weights_than_labels_the_noise_does_not_run_away():
    model, loader = mlp(3, 20, 1), targets((4, 3), 1, batches=1)
    bayes = bayesianize(
        model, loader, likelihood=Gaussian(), prior=MarginalLikelihood(), progress=False
    )
    squared = float((model(loader[0][0]) - loader[0][1]).square().mean().detach())
    assert squared < bayes.likelihood.noise_variance <= 2 * squared * (1 + 1e-9)


def test_a_classifier_learns_no_noise():
    bayes = bayesianize(mlp(3, 4, 2), pairs((8, 3), 2), prior=MarginalLikelihood(), progress=False)
    assert not bayes.posterior.evidence().learns_noise
    assert bayes.likelihood.dispersion == 1.0
