"""`ClassPreserving`: the most probable class stays, and two classes are MacKay's probit."""

import math
from itertools import pairwise

import pytest
import torch

from posthoc_bhpeft.predictive import ClassPreserving, Linearized, MonteCarlo, Probit
from posthoc_bhpeft.predictive.links import contrast_variance
from tests.contracts import check_predictive
from tests.models import seeded

N = 200


def gaussian(n_outputs, spread, seed=0):
    generator = seeded(seed)
    mean = 2 * torch.randn(N, n_outputs, generator=generator, dtype=torch.float64)
    root = torch.randn(N, n_outputs, n_outputs, generator=generator, dtype=torch.float64)
    return mean, spread * root @ root.transpose(1, 2)


def test_the_contract():
    check_predictive(Linearized(ClassPreserving()))


@pytest.mark.parametrize("n_outputs", [2, 3, 10])
@pytest.mark.parametrize("spread", [1e-3, 1.0, 1e3])
def test_the_predicted_class_never_changes(n_outputs, spread):
    mean, covariance = gaussian(n_outputs, spread)
    probabilities = ClassPreserving().softmax(mean, covariance)
    assert torch.equal(probabilities.argmax(-1), mean.argmax(-1))
    assert torch.allclose(probabilities.sum(-1), torch.ones(N).double())


def test_sampling_does_change_it_which_is_why_this_link_exists():
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
    assert torch.allclose(ClassPreserving().softmax(mean, covariance)[:, 1], exact)


@pytest.mark.parametrize("n_outputs", [2, 5])
def test_a_common_shift_of_the_logits_does_not_matter(n_outputs):
    mean, covariance = gaussian(n_outputs, 1.0)
    plain = ClassPreserving().softmax(mean, covariance)
    shifted = ClassPreserving().softmax(mean + 7, covariance + 5.0)
    assert torch.allclose(shifted, plain)


def test_more_variance_never_makes_it_more_certain():
    mean, covariance = gaussian(4, 1.0)
    top = [
        ClassPreserving().softmax(mean, scale * covariance).amax(-1)
        for scale in (0.0, 0.5, 1.0, 10.0)
    ]
    assert torch.allclose(top[0], mean.softmax(-1).amax(-1))
    assert all(bool((after < before).all()) for before, after in pairwise(top))


def test_the_variance_of_the_contrasts_by_hand():
    mean = torch.tensor([[3.0, 1.0, 1.0]]).double()
    covariance = torch.tensor([[[1.0, 0.2, 0.1], [0.2, 2.0, 0.0], [0.1, 0.0, 4.0]]]).double()
    # Both other classes are equally probable: (1 + 2 - 0.4 + 1 + 4 - 0.2) / 2.
    assert float(contrast_variance(mean, covariance)[0]) == pytest.approx(3.7)


def test_independent_answers_are_the_probit():
    mean, covariance = gaussian(3, 1.0)
    variance = covariance.diagonal(dim1=1, dim2=2)
    link = ClassPreserving().sigmoid(mean, variance)
    assert torch.equal(link, Probit().sigmoid(mean, variance))
    assert torch.equal(link > 0.5, mean > 0)
