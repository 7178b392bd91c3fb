"""Roots of the Hessian, gradients and log densities against autograd and torch's distributions."""

import math

import pytest
import torch
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Normal

from posthoc_bhpeft.errors import ConfigError, DataError
from posthoc_bhpeft.likelihood import Bernoulli, Categorical, Gaussian, Tokens
from posthoc_bhpeft.likelihood.labels import ABSENT
from tests.models import seeded
from tests.oracles import output_hessians

LIKELIHOODS = [Categorical(), Bernoulli(), Gaussian(), Gaussian(0.3)]
N = 5


def rows(likelihood, n_outputs=4, spread=2.0):
    outputs = spread * torch.randn(N, n_outputs, generator=seeded(), dtype=torch.float64)
    if isinstance(likelihood, Categorical):
        return outputs, torch.randint(0, n_outputs, (N,), generator=seeded(1))
    draws = torch.rand(N, n_outputs, generator=seeded(1), dtype=torch.float64)
    return outputs, (draws > 0.5).long() if isinstance(likelihood, Bernoulli) else draws


def torch_distribution(likelihood, outputs):
    if isinstance(likelihood, Categorical):
        return TorchCategorical(logits=outputs)
    if isinstance(likelihood, Bernoulli):
        return TorchBernoulli(logits=outputs)
    return Normal(outputs, likelihood.dispersion**0.5)


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=repr)
@pytest.mark.parametrize("n_outputs", [2, 3, 7])
@pytest.mark.parametrize("root", ["hessian_root", "reduced_root"])
def test_a_root_squares_to_the_hessian(likelihood, n_outputs, root):
    outputs, labels = rows(likelihood, n_outputs)
    S = getattr(likelihood, root)(outputs)
    assert torch.allclose(S @ S.transpose(1, 2), output_hessians(likelihood, outputs, labels))


@pytest.mark.parametrize("n_outputs", [2, 3, 7])
def test_the_reduced_root_of_a_softmax_has_one_column_less(n_outputs):
    outputs, _ = rows(Categorical(), n_outputs)
    assert Categorical().reduced_root(outputs).shape == (N, n_outputs, n_outputs - 1)


@pytest.mark.parametrize("gap", [40.0, 800.0])
def test_roots_stay_finite_and_right_where_the_softmax_saturates(gap):
    outputs = torch.tensor([[gap, 0.0, -gap], [-gap, gap, 0.0], [0.0, -gap, gap]]).double()
    p = outputs.softmax(-1)
    hessian = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    for S in (Categorical().hessian_root(outputs), Categorical().reduced_root(outputs)):
        assert bool(torch.isfinite(S).all())
        assert torch.allclose(S @ S.transpose(1, 2), hessian, atol=1e-15)


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=repr)
def test_nll_is_that_of_the_distribution(likelihood):
    outputs, labels = rows(likelihood)
    log_prob = torch_distribution(likelihood, outputs).log_prob(labels.double())
    expected = -(log_prob if log_prob.dim() == 1 else log_prob.sum(-1))
    assert torch.allclose(likelihood.nll(outputs, labels), expected)


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=repr)
def test_output_gradient_is_that_of_autograd(likelihood):
    outputs, labels = rows(likelihood)
    outputs.requires_grad_()
    (expected,) = torch.autograd.grad(likelihood.nll(outputs, labels).sum(), outputs)
    assert torch.allclose(likelihood.output_gradient(outputs.detach(), labels), expected)


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=repr)
@pytest.mark.parametrize("n_outputs", [2, 5])
def test_contrasts_are_orthonormal(likelihood, n_outputs):
    contrasts = likelihood.contrasts(n_outputs)
    identity = torch.eye(contrasts.shape[1], dtype=torch.float64)
    assert torch.allclose(contrasts.T @ contrasts, identity, atol=1e-14)


@pytest.mark.parametrize("n_outputs", [2, 5])
def test_contrasts_of_a_softmax_leave_out_the_common_shift_and_nothing_else(n_outputs):
    contrasts = Categorical().contrasts(n_outputs)
    centring = torch.eye(n_outputs).double() - 1 / n_outputs
    assert torch.allclose(contrasts @ contrasts.T, centring, atol=1e-14)


def test_the_noise_is_a_dispersion():
    outputs, labels = rows(Gaussian())
    squared = (outputs - labels).square().sum(-1)
    noisy = Gaussian(0.3).nll(outputs, labels)
    assert torch.allclose(noisy, squared / 0.6 + 2 * math.log(2 * math.pi * 0.3))
    assert Gaussian(0.3).dispersion == 0.3
    assert Gaussian().dispersion == Categorical().dispersion == Bernoulli().dispersion == 1.0


def test_a_target_per_row_fits_one_output():
    outputs, labels = torch.zeros(N, 1).double(), torch.ones(N).double()
    Gaussian(1.0).check_labels(outputs, labels)
    column = Gaussian(1.0).nll(outputs, labels[:, None])
    assert torch.allclose(Gaussian(1.0).nll(outputs, labels), column)
    assert Gaussian(1.0).output_gradient(outputs, labels).shape == (N, 1)


@pytest.mark.parametrize(
    ("likelihood", "n_outputs", "labels", "message"),
    [
        (Categorical(), 3, torch.tensor([0, 3]), r"Label 3 in row 1 .* 0 to 2"),
        (Categorical(), 3, torch.tensor([-1, 2]), r"Label -1 in row 0"),
        (Categorical(), 3, torch.tensor([0.0, 1.0]), "must be integers"),
        (Categorical(), 3, torch.tensor([[0], [1]]), r"shape \(N,\)"),
        (Categorical(), 1, torch.tensor([0, 0]), "at least 2 logits"),
        (Bernoulli(), 3, torch.tensor([[0, 1, 2], [0, 0, 0]]), r"\[0, 1\]"),
        (Bernoulli(), 3, torch.tensor([1, 0]), r"\(2, 3\)"),
        (Gaussian(), 1, torch.tensor([1.0, torch.nan]), "NaN or infinite"),
        (Gaussian(), 2, torch.tensor([1.0, 2.0]), r"\(2, 2\)"),
    ],
)
def test_labels_that_do_not_fit_are_refused_in_words(likelihood, n_outputs, labels, message):
    with pytest.raises(DataError, match=message):
        likelihood.check_labels(torch.zeros(2, n_outputs), labels)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_a_noise_variance_must_be_positive(value):
    with pytest.raises(ConfigError, match="above 0"):
        Gaussian(value)


@pytest.mark.parametrize("likelihood", [Categorical(), Bernoulli(), Tokens()], ids=repr)
@pytest.mark.parametrize("size", [1, 2, 3])
def test_random_signs_of_a_row_do_not_depend_on_its_batch(likelihood, size):
    shape = (N, 4, 7) if likelihood.positions else (N, 7)
    outputs = torch.randn(shape, generator=seeded(), dtype=torch.float64)
    labels = torch.randint(0, 7, shape[:-1], generator=seeded(1))
    if likelihood.positions:
        labels[1, 2:] = -100

    def drawn(step):
        generator = seeded(2)
        parts = [slice(start, start + step) for start in range(0, N, step)]
        each = [likelihood.signed_root(outputs[p], labels[p], 2, generator) for p in parts]
        return torch.cat(each, 1)

    assert torch.allclose(drawn(size), drawn(N), atol=1e-12)


def test_labels_of_choices_that_are_not_there():
    outputs = torch.tensor([[0.5, 1.0, ABSENT], [0.5, 1.0, 2.0]])
    Categorical().check_labels(outputs, torch.tensor([1, 2]))
    for kind in (torch.float32, torch.bfloat16, torch.float16):
        with pytest.raises(DataError, match=r"Label 2 in row 0 .* the row has 2"):
            Categorical().check_labels(outputs.to(kind), torch.tensor([2, 2]))
    # As it is where a model in half precision says so and its outputs are made longer.
    with pytest.raises(DataError, match="not there"):
        Categorical().check_labels(outputs.bfloat16().float(), torch.tensor([2, 2]))
