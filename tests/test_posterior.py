"""The posterior against dense Gaussians: precision, samples, log determinant, prior, evidence."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from posthoc_bhpeft.curvature import DenseGGN, DiagonalGGN, KroneckerGGN
from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.likelihood import Gaussian
from posthoc_bhpeft.posterior import as_parameters, block_spectrum, read_weights
from posthoc_bhpeft.prior import GaussianPrior
from tests.hybrid.families import tiny_loader
from tests.models import hybrid, linear, mlp, pairs, posterior_of, prefix, seeded, targets
from tests.oracles import dense_precision

STRUCTURES = [KroneckerGGN(), DiagonalGGN(), DenseGGN()]


@pytest.fixture(params=STRUCTURES, ids=repr)
def structure(request):
    return request.param


@pytest.fixture
def posterior(structure):
    return posterior_of(mlp(3, 4, 3), pairs((6, 3), 3), curvature=structure, precision=0.7)


# ---------------------------------------------------------------- against a dense Gaussian


def test_precision_matvec_is_the_dense_precision(posterior):
    for block in posterior.blocks:
        matrix = torch.randn(2, *block.shape, generator=seeded(), dtype=torch.float64)
        dense = matrix.flatten(1) @ dense_precision(posterior)[block.name]
        applied = posterior.precision_matvec(block, matrix)
        assert torch.allclose(applied.flatten(1), dense)


def test_log_determinant_is_that_of_the_dense_precision(posterior):
    exact = sum(torch.logdet(matrix) for matrix in dense_precision(posterior).values())
    assert posterior.precision_log_determinant() == pytest.approx(float(exact), rel=1e-10)


def test_variances_are_those_of_the_dense_covariance(posterior):
    for block in posterior.blocks:
        exact = 1 / torch.linalg.eigvalsh(dense_precision(posterior)[block.name])
        variances = posterior.variances(block).flatten().sort().values
        assert torch.allclose(variances, exact.sort().values)


def test_the_evidence_is_that_of_the_dense_precision(posterior):
    value = posterior.log_likelihood
    for block in posterior.blocks:
        precision, d = dense_precision(posterior)[block.name], 0.7
        weights = posterior.mean[block.name].flatten()
        prior = MultivariateNormal(torch.zeros_like(weights), torch.eye(block.size).double() / d)
        # log p(theta) + P/2 log 2 pi - 1/2 log det of the posterior precision.
        value += float(prior.log_prob(weights) + 0.5 * block.size * math.log(2 * math.pi))
        value -= 0.5 * float(torch.logdet(precision))
    assert posterior.log_marginal_likelihood() == pytest.approx(value, rel=1e-10)


def test_samples_have_the_mean_and_covariance_of_the_dense_gaussian(posterior):
    n = 20_000
    drawn = posterior.sample(n, seeded())
    for block in posterior.blocks:
        flat = (drawn[block.name] - posterior.mean[block.name]).flatten(1)
        covariance = torch.linalg.inv(dense_precision(posterior)[block.name])
        mean_error = covariance.diagonal().div(n).sqrt()
        assert bool((flat.mean(0).abs() < 5 * mean_error).all())
        # Var(x_i x_j) of a Gaussian is C_ii C_jj + C_ij^2.
        variance = torch.outer(covariance.diagonal(), covariance.diagonal()) + covariance.square()
        error = (flat.T @ flat / n - covariance).abs()
        assert bool((error < 5 * (variance / n).sqrt()).all())


def test_samples_are_reproducible_and_leave_the_global_state_alone(posterior):
    state = torch.get_rng_state()
    first, again = posterior.sample(3, seeded()), posterior.sample(3, seeded())
    other = posterior.sample(3, seeded(1))
    for name, weights in first.items():
        assert torch.equal(weights, again[name])
        assert not torch.equal(weights, other[name])
    assert torch.equal(torch.get_rng_state(), state)


# ---------------------------------------------------------------- closed forms


@pytest.mark.parametrize("structure", [KroneckerGGN(), DenseGGN()], ids=repr)
def test_linear_regression_is_the_closed_form(structure):
    noise, d = 0.4, 1.5
    inputs, labels = targets((9, 3), 2, batches=1)[0]
    posterior = posterior_of(
        linear(3, 2),
        [(inputs, labels)],
        precision=d,
        curvature=structure,
        likelihood=Gaussian(noise),
    )
    (block,) = posterior.blocks
    exact = torch.block_diag(*[d * torch.eye(3).double() + inputs.T @ inputs / noise] * 2)
    assert torch.allclose(dense_precision(posterior)["weight"], exact)
    basis = posterior.bases["weight"]
    unit = torch.eye(6, dtype=torch.float64).reshape(6, 2, 3)
    covariance = basis.unproject(posterior.variances(block) * basis.project(unit)).flatten(1)
    assert torch.allclose(covariance, torch.linalg.inv(exact))


# ---------------------------------------------------------------- the prior


def test_with_prior_changes_the_prior_alone(posterior, structure):
    prior = GaussianPrior.isotropic(posterior.blocks, 9.0)
    other = posterior.with_prior(prior)
    fresh = posterior_of(mlp(3, 4, 3), pairs((6, 3), 3), curvature=structure, precision=9.0)
    assert other.prior is prior
    assert other.curvature is posterior.curvature
    assert posterior.prior.precision == dict.fromkeys(posterior.prior.precision, 0.7)
    assert other.log_marginal_likelihood() == pytest.approx(fresh.log_marginal_likelihood())
    for block in posterior.blocks:
        before, after = 1 / posterior.variances(block), 1 / other.variances(block)
        assert torch.allclose(after - before, torch.full(block.shape, 8.3).double())


def test_a_precision_for_each_block(posterior):
    precision = {block.name: 1.0 + i for i, block in enumerate(posterior.blocks)}
    other = posterior.with_prior(GaussianPrior(precision))
    exact = sum(torch.logdet(matrix) for matrix in dense_precision(other).values())
    assert other.precision_log_determinant() == pytest.approx(float(exact), rel=1e-10)


def test_a_prior_mean_enters_the_evidence_by_the_distance_to_it(posterior):
    zero = posterior.log_marginal_likelihood()
    at_mode = posterior.with_prior(GaussianPrior(posterior.prior.precision, posterior.mean))
    squared = sum(float(weights.square().sum()) for weights in posterior.mean.values())
    assert at_mode.log_marginal_likelihood() - zero == pytest.approx(0.5 * 0.7 * squared)


def test_movement_keeps_its_length_in_the_eigenbasis(posterior):
    for block in posterior.blocks:
        weights = posterior.mean[block.name]
        spectrum = block_spectrum(block, posterior.bases[block.name], weights, None)
        assert float(spectrum.squared_movement.sum()) == pytest.approx(
            float(weights.square().sum())
        )
        assert spectrum.eigenvalues.shape == spectrum.squared_movement.shape == (block.size,)


def test_movement_is_measured_along_the_right_eigenvectors():
    posterior = posterior_of(mlp(3, 4, 3), pairs((6, 3), 3))
    for block in posterior.blocks:
        spectrum = posterior.spectrum(block)
        weights = posterior.mean[block.name].flatten()
        exact = weights @ posterior.curvature[block.name].dense() @ weights
        seen = (spectrum.eigenvalues * spectrum.squared_movement).sum()
        assert float(seen) == pytest.approx(float(exact))


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_a_precision_must_be_positive(value):
    with pytest.raises(ConfigError, match=r"'w'.*above 0"):
        GaussianPrior({"w": value})


# ---------------------------------------------------------------- weights in and out of the model


@pytest.mark.parametrize("make", [hybrid, prefix, lambda: mlp(3, 4, 2)])
def test_weights_read_and_put_together_again_are_the_parameters(make):
    model = make()
    loader = pairs((4, 3), 2) if isinstance(model, torch.nn.Sequential) else tiny_loader(model)
    blocks = posterior_of(model, loader, curvature=KroneckerGGN()).blocks
    weights = read_weights(model, blocks)
    whole = as_parameters(model, blocks, weights)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert whole.keys() == trainable.keys()
    assert all(torch.equal(tensor, trainable[name]) for name, tensor in whole.items())
    shifted = {name: matrix + 1 for name, matrix in weights.items()}
    moved = as_parameters(model, blocks, shifted)
    assert all(torch.equal(tensor, trainable[name] + 1) for name, tensor in moved.items())


def test_weights_read_are_copies():
    model = mlp(3, 2)
    posterior = posterior_of(model, pairs((4, 3), 2))
    before = posterior.mean["0.weight"].clone()
    with torch.no_grad():
        model[0].weight.zero_()
    assert torch.equal(posterior.mean["0.weight"], before)


def test_half_precision_weights_are_read_as_float32():
    model = mlp(3, 2).to(torch.bfloat16)
    loader = [(x.to(torch.bfloat16), y) for x, y in pairs((4, 3), 2)]
    posterior = posterior_of(model, loader)
    assert posterior.mean["0.weight"].dtype == torch.float32
