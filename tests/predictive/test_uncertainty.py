"""Entropies in nats: against torch's distributions, in order, and split into two parts."""

import math

import pytest
import torch
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import MultivariateNormal

from posthoc_bhpeft.likelihood import Bernoulli, Categorical, Gaussian
from posthoc_bhpeft.predictive import LaplaceBridge, MonteCarlo, Probit
from posthoc_bhpeft.predictive.uncertainty import (
    binary_entropy,
    entropy,
    gaussian_prediction,
    predict_draws,
    predict_gaussian_outputs,
    predict_point,
    sample_covariance,
)
from tests.contracts import check_prediction
from tests.models import seeded

N, C = 8, 3
MEAN = 2 * torch.randn(N, C, generator=seeded(), dtype=torch.float64)


def covariance(scale=1.0):
    root = torch.randn(N, C, C, generator=seeded(1), dtype=torch.float64)
    return scale * root @ root.transpose(1, 2)


# ---------------------------------------------------------------- entropies


def test_entropy_is_that_of_the_distribution():
    probabilities = MEAN.softmax(-1)
    assert torch.allclose(entropy(probabilities), TorchCategorical(probs=probabilities).entropy())
    answers = MEAN.sigmoid()
    assert torch.allclose(binary_entropy(answers), TorchBernoulli(probs=answers).entropy())


def test_entropy_of_certainty_is_zero_and_of_ignorance_log_c():
    certain = torch.tensor([[1.0, 0.0, 0.0]])
    assert entropy(certain).item() == 0
    assert bool((binary_entropy(certain) == 0).all())
    assert entropy(torch.full((1, 3), 1 / 3)).item() == pytest.approx(math.log(3))
    assert binary_entropy(torch.tensor(0.5)).item() == pytest.approx(math.log(2))


# ---------------------------------------------------------------- Gaussian outputs


LINKS = [MonteCarlo(64), Probit(), LaplaceBridge()]


@pytest.mark.parametrize("link", LINKS, ids=repr)
@pytest.mark.parametrize("scale", [0.0, 1e-6, 1.0, 1e6])
def test_parts_add_up_and_none_is_negative(link, scale):
    prediction = predict_gaussian_outputs(Categorical(), MEAN, covariance(scale), link)
    check_prediction(prediction, N, C)


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e6])
def test_parts_of_independent_answers_add_up_and_none_is_negative(scale):
    prediction = predict_gaussian_outputs(Bernoulli(), MEAN, covariance(scale), Probit())
    check_prediction(prediction, N, C)
    assert prediction.multilabel


def test_the_epistemic_part_is_the_mutual_information():
    prediction = predict_gaussian_outputs(Categorical(), MEAN, covariance(0.3), MonteCarlo(20_000))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        draws = MultivariateNormal(MEAN, covariance(0.3)).sample((50_000,)).softmax(-1)
    exact = entropy(draws.mean(0)) - entropy(draws).mean(0)
    error = entropy(draws).std(0) / 256**0.5
    assert bool((exact > 0.01).any())
    assert bool(((prediction.epistemic - exact).abs() < 5 * error).all())


def test_no_variance_is_no_epistemic_uncertainty():
    prediction = predict_gaussian_outputs(Categorical(), MEAN, covariance(0.0), Probit())
    assert bool((prediction.epistemic < 1e-12).all())
    assert torch.allclose(prediction.total, entropy(MEAN.softmax(-1)))


def test_more_variance_is_more_epistemic_uncertainty():
    parts = [
        predict_gaussian_outputs(Categorical(), MEAN, covariance(scale), Probit()).epistemic.mean()
        for scale in (0.01, 0.1, 1.0)
    ]
    assert parts[0] < parts[1] < parts[2]


# ---------------------------------------------------------------- regression


def test_regression_entropies_are_those_of_the_gaussians():
    noise, V = 0.3, covariance()
    prediction = gaussian_prediction(MEAN, V, noise)
    total = MultivariateNormal(MEAN, V + noise * torch.eye(C).double()).entropy()
    aleatoric = MultivariateNormal(MEAN, noise * torch.eye(C).double()).entropy()
    assert torch.allclose(prediction.total, total)
    assert torch.allclose(prediction.aleatoric, aleatoric)
    assert torch.allclose(prediction.epistemic, total - aleatoric)
    assert bool((prediction.epistemic > 0).all())
    assert prediction.probabilities is None
    assert torch.equal(prediction.predicted, MEAN)


def test_regression_without_variance_has_no_epistemic_part():
    prediction = gaussian_prediction(MEAN, covariance(0.0), 0.3)
    assert bool((prediction.epistemic == 0).all())


# ---------------------------------------------------------------- draws and points


@pytest.mark.parametrize("likelihood", [Categorical(), Bernoulli()], ids=repr)
def test_draws_are_averaged_and_split(likelihood):
    draws = MEAN + torch.randn(7, N, C, generator=seeded(2), dtype=torch.float64)
    prediction = predict_draws(likelihood, MEAN, draws)
    check_prediction(prediction, N, C)
    one = isinstance(likelihood, Categorical)
    each = draws.softmax(-1) if one else draws.sigmoid()
    inside = TorchCategorical(probs=each) if one else TorchBernoulli(probs=each)
    aleatoric = inside.entropy() if one else inside.entropy().sum(-1)
    assert torch.allclose(prediction.probabilities, each.mean(0))
    assert torch.allclose(prediction.aleatoric, aleatoric.mean(0))
    assert bool((prediction.epistemic > 0).all())


def test_the_covariance_of_draws_is_that_of_torch():
    draws = torch.randn(7, 1, C, generator=seeded(2), dtype=torch.float64)
    assert torch.allclose(sample_covariance(draws)[0], torch.cov(draws[:, 0].T))


@pytest.mark.parametrize("likelihood", [Categorical(), Bernoulli()], ids=repr)
def test_a_point_has_no_epistemic_part(likelihood):
    prediction = predict_point(likelihood, MEAN)
    check_prediction(prediction, N, C)
    assert bool((prediction.epistemic == 0).all())


def test_a_regression_point_has_no_covariance():
    prediction = predict_point(Gaussian(0.3), MEAN)
    assert prediction.covariance is None
    assert bool((prediction.epistemic == 0).all())
