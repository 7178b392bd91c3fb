"""`LogOdds`: the predicted class stays, is never surer than the network, and needs one pass."""

import math
from itertools import pairwise

import pytest
import torch

from posthoc_bhpeft.likelihood import Categorical
from posthoc_bhpeft.predictive import Linearized, LogOdds, MonteCarlo, Probit
from tests.contracts import check_predictive
from tests.models import mlp, pairs, posterior_of, seeded

N = 200


def gaussian(n_outputs, spread, seed=0):
    generator = seeded(seed)
    mean = 2 * torch.randn(N, n_outputs, generator=generator, dtype=torch.float64)
    root = torch.randn(N, n_outputs, n_outputs, generator=generator, dtype=torch.float64)
    return mean, spread * root @ root.transpose(1, 2)


def test_the_contract():
    check_predictive(Linearized(LogOdds()))


@pytest.mark.parametrize("n_outputs", [2, 3, 10])
@pytest.mark.parametrize("spread", [1e-3, 1.0, 1e3])
def test_the_predicted_class_never_changes_and_is_never_surer(n_outputs, spread):
    mean, covariance = gaussian(n_outputs, spread)
    probabilities = LogOdds().softmax(mean, covariance)
    assert torch.equal(probabilities.argmax(-1), mean.argmax(-1))
    assert torch.allclose(probabilities.sum(-1), torch.ones(N).double())
    assert bool((probabilities.amax(-1) <= mean.softmax(-1).amax(-1) + 1e-12).all())


def test_sampling_does_change_it_which_is_one_reason_for_this_link():
    mean, covariance = gaussian(3, 3.0)
    sampled = MonteCarlo(2000).softmax(mean, covariance).argmax(-1)
    assert bool((sampled != mean.argmax(-1)).any())


@pytest.mark.parametrize("spread", [0.1, 1.0, 10.0])
def test_two_classes_are_the_probit_of_their_difference(spread):
    mean, covariance = gaussian(2, spread)
    contrast = torch.tensor([-1.0, 1.0]).double()
    variance = torch.einsum("c,nck,k->n", contrast, covariance, contrast)
    difference = mean[:, 1] - mean[:, 0]
    exact = (difference / torch.sqrt(1 + math.pi / 8 * variance)).sigmoid()
    assert torch.allclose(LogOdds().softmax(mean, covariance)[:, 1], exact)


@pytest.mark.parametrize("n_outputs", [2, 5])
def test_a_common_shift_of_the_logits_does_not_matter(n_outputs):
    mean, covariance = gaussian(n_outputs, 1.0)
    plain = LogOdds().softmax(mean, covariance)
    shifted = LogOdds().softmax(mean + 7, covariance + 5.0)
    assert torch.allclose(shifted, plain)


def test_rows_without_a_majority_keep_the_probabilities_of_the_network():
    mean, covariance = gaussian(5, 1.0)
    split = mean.softmax(-1).amax(-1) < 0.5
    assert bool(split.any())
    unchanged = LogOdds().softmax(mean, covariance)[split]
    assert torch.allclose(unchanged, mean[split].softmax(-1))


def test_more_variance_never_makes_it_surer():
    mean, covariance = gaussian(4, 1.0)
    sure = mean.softmax(-1).amax(-1) > 0.5
    top = [
        LogOdds().softmax(mean, scale * covariance).amax(-1)[sure] for scale in (0.0, 0.5, 1.0, 10)
    ]
    assert torch.allclose(top[0], mean.softmax(-1).amax(-1)[sure])
    assert all(bool((after < before).all()) for before, after in pairwise(top))


def test_the_gradient_of_the_log_odds_is_that_of_autograd():
    mean, _ = gaussian(4, 1.0)
    mean.requires_grad_(True)
    (exact,) = torch.autograd.grad(LogOdds.margin(mean).sum(), mean)
    assert torch.allclose(LogOdds.gradient(mean.detach()), exact)


def test_the_information_is_the_binary_one_by_brute_force():
    mean, covariance = gaussian(3, 1.0)
    margin, deviation = LogOdds.margin(mean), LogOdds.variance(mean, covariance).sqrt()
    noise = torch.randn(40_000, generator=seeded(1), dtype=torch.float64)
    draws = (margin[:20, None] + deviation[:20, None] * noise).sigmoid()

    def binary(p):
        return -(torch.special.xlogy(p, p) + torch.special.xlogy(1 - p, 1 - p))

    brute = binary(draws.mean(1)) - binary(draws).mean(1)
    found = LogOdds().information(mean, covariance)[:20]
    assert torch.allclose(found, brute, atol=6e-3)
    assert bool((found > 0).all())


def test_independent_answers_are_the_probit():
    mean, covariance = gaussian(3, 1.0)
    variance = covariance.diagonal(dim1=1, dim2=2)
    link = LogOdds().sigmoid(mean, variance)
    assert torch.equal(link, Probit().sigmoid(mean, variance))


def test_one_direction_gives_the_probabilities_of_the_whole_covariance():
    mean, covariance = gaussian(6, 1.0)
    direction = LogOdds().direction(mean)
    along = torch.einsum("nc,nck,nk->n", direction, covariance, direction)
    rank_one = along[:, None, None] * direction[:, :, None] * direction[:, None, :]
    link = LogOdds()
    assert torch.allclose(link.softmax(mean, rank_one), link.softmax(mean, covariance))
    assert torch.allclose(link.information(mean, rank_one), link.information(mean, covariance))


def test_many_classes_take_one_backward_pass_and_give_the_same_probabilities():
    model, loader = mlp(3, 4, 6), pairs((6, 3), 6)
    posterior = posterior_of(model, loader)
    inputs = loader[0][0]
    cheap = Linearized(max_passes=3).predict(model, posterior, Categorical(), inputs)
    whole = Linearized(max_passes=5).predict(model, posterior, Categorical(), inputs)
    assert cheap.covariance is None
    assert whole.covariance is not None
    assert torch.allclose(cheap.probabilities, whole.probabilities)
    assert torch.allclose(cheap.epistemic, whole.epistemic)


def test_a_link_that_needs_the_covariance_gets_it_whatever_it_costs():
    model, loader = mlp(3, 4, 6), pairs((6, 3), 6)
    posterior = posterior_of(model, loader)
    found = Linearized(Probit(), max_passes=1).predict(
        model, posterior, Categorical(), loader[0][0]
    )
    assert found.covariance is not None
