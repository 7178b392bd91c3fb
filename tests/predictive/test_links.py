"""Links against formulas by hand and brute-force sampling. `LogOdds` has its own file."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal

from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.likelihood.labels import ABSENT
from posthoc_bhpeft.predictive import LaplaceBridge, LogOdds, MonteCarlo, Probit, Tempered
from posthoc_bhpeft.predictive.links import matrix_root
from tests.models import seeded

N, C = 6, 4


def gaussian(spread=2.0, n_outputs=C, rank=None, seed=0):
    """Random means `(N, C)` and covariances `(N, C, C)`."""
    generator = seeded(seed)
    mean = spread * torch.randn(N, n_outputs, generator=generator, dtype=torch.float64)
    root = torch.randn(N, n_outputs, rank or n_outputs, generator=generator, dtype=torch.float64)
    return mean, root @ root.transpose(1, 2)


def brute_force(mean, covariance, n=200_000):
    """`E softmax(f)` and its standard error, with torch's own sampler."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        jitter = 1e-12 * torch.eye(mean.shape[-1]).double()
        draws = MultivariateNormal(mean, covariance + jitter).sample((n,)).softmax(-1)
    return draws.mean(0), draws.std(0) / n**0.5


# ---------------------------------------------------------------- Monte Carlo


@pytest.mark.parametrize("rank", [4, 3, 1])
def test_monte_carlo_is_the_mean_of_the_softmax(rank):
    mean, covariance = gaussian(rank=rank)
    exact, error = brute_force(mean, covariance)
    samples = 20_000
    estimate = MonteCarlo(samples).softmax(mean, covariance)
    spread = error * (200_000 / samples) ** 0.5
    assert bool(((estimate - exact).abs() < 5 * (error + spread) + 1e-6).all())


def test_monte_carlo_of_independent_answers():
    mean, covariance = gaussian()
    variance = covariance.diagonal(dim1=1, dim2=2)
    points = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    weights = (-0.5 * points.square()).exp()
    weights = weights / weights.sum()
    values = (mean[..., None] + variance.sqrt()[..., None] * points).sigmoid()
    exact = (values * weights).sum(-1)
    estimate = MonteCarlo(20_000).sigmoid(mean, variance)
    assert torch.allclose(estimate, exact, atol=5 * 0.5 / 20_000**0.5)


def test_monte_carlo_draws_have_the_covariance():
    mean, covariance = gaussian(rank=2)
    n = 50_000
    draws = MonteCarlo(n).draw(mean, covariance)
    centred = draws - mean
    estimate = torch.einsum("snc,snk->nck", centred, centred) / n
    diagonal = covariance.diagonal(dim1=1, dim2=2)
    variance = diagonal[:, :, None] * diagonal[:, None, :] + covariance.square()
    assert bool(((estimate - covariance).abs() < 5 * (variance / n).sqrt()).all())


def test_monte_carlo_of_no_variance_is_the_softmax():
    mean, covariance = gaussian()
    exact = mean.softmax(-1)
    assert torch.allclose(MonteCarlo(8).softmax(mean, 0 * covariance), exact)


def test_monte_carlo_is_reproducible_by_its_seed():
    mean, covariance = gaussian()
    state = torch.get_rng_state()
    first = MonteCarlo(16).softmax(mean, covariance)
    assert torch.equal(first, MonteCarlo(16).softmax(mean, covariance))
    assert not torch.equal(first, MonteCarlo(16, seed=1).softmax(mean, covariance))
    assert torch.equal(torch.get_rng_state(), state)


def test_equal_rows_get_equal_probabilities():
    mean, covariance = gaussian()
    twice = MonteCarlo(16).softmax(mean[[0, 3, 0]], covariance[[0, 3, 0]])
    assert torch.equal(twice[0], twice[2])


@pytest.mark.parametrize(
    "variances", [[1.0, 2.0, 3.0], [2.0, 2.0, 0.5], [1.0, 1.0, 1.0], [3, 0, 0]]
)
def test_a_row_changed_by_rounding_keeps_its_probabilities(variances):
    """Eigenvectors are unique up to their sign, or less; the root must not depend on which."""
    mean, _ = gaussian(n_outputs=3)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=seeded(2), dtype=torch.float64)).Q
    covariance = turn @ torch.diag(torch.tensor(variances, dtype=torch.float64)) @ turn.T
    plain = MonteCarlo(16).softmax(mean, covariance.expand(N, 3, 3))
    for seed in range(20):
        noise = 1e-14 * torch.randn(3, 3, generator=seeded(seed), dtype=torch.float64)
        moved = MonteCarlo(16).softmax(mean, (covariance + noise + noise.T).expand(N, 3, 3))
        assert torch.allclose(moved, plain, atol=1e-6)


@pytest.mark.parametrize("rank", [4, 2])
def test_a_matrix_root_squares_to_its_matrix(rank):
    _, covariance = gaussian(rank=rank)
    root = matrix_root(covariance)
    assert torch.allclose(root @ root.transpose(1, 2), covariance, atol=1e-12)


def test_no_sample_is_refused():
    with pytest.raises(ConfigError, match="at least 1"):
        MonteCarlo(0)


# ---------------------------------------------------------------- probit


def test_probit_by_hand():
    mean = torch.tensor([[1.0, -0.5]]).double()
    covariance = torch.tensor([[[2.0, 0.7], [0.7, 0.4]]]).double()
    scaled = [
        1.0 / math.sqrt(1 + math.pi / 8 * 2.0),
        -0.5 / math.sqrt(1 + math.pi / 8 * 0.4),
    ]
    first = math.exp(scaled[0]) / (math.exp(scaled[0]) + math.exp(scaled[1]))
    assert float(Probit().softmax(mean, covariance)[0, 0]) == pytest.approx(first)
    single = Probit().sigmoid(mean, torch.tensor([[2.0, 0.4]]).double())
    assert float(single[0, 0]) == pytest.approx(1 / (1 + math.exp(-scaled[0])))


def test_probit_of_one_answer_is_close_to_the_integral():
    mean, covariance = gaussian()
    variance = covariance.diagonal(dim1=1, dim2=2)
    exact = MonteCarlo(20_000).sigmoid(mean, variance)
    # MacKay's approximation is good to about two hundredths.
    assert torch.allclose(Probit().sigmoid(mean, variance), exact, atol=0.04)


# ---------------------------------------------------------------- Laplace bridge


def test_the_laplace_bridge_by_hand():
    mean = torch.tensor([[1.0, 0.0, -1.0]]).double()
    covariance = torch.diag_embed(torch.tensor([[0.5, 1.0, 2.0]])).double()
    inverse = math.exp(-1) + 1 + math.exp(1)
    alpha = [
        (1 - 2 / 3 + math.exp(f) / 9 * inverse) / v
        for f, v in zip((1.0, 0.0, -1.0), (0.5, 1.0, 2.0), strict=True)
    ]
    expected = torch.tensor([[a / sum(alpha) for a in alpha]]).double()
    assert torch.allclose(LaplaceBridge().softmax(mean, covariance), expected)


def test_the_laplace_bridge_does_not_see_a_common_shift():
    mean, covariance = gaussian()
    shifted = LaplaceBridge().softmax(mean + 3, covariance)
    assert torch.allclose(shifted, LaplaceBridge().softmax(mean, covariance))


@pytest.mark.parametrize("top", [100.0, 1000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_laplace_bridge_of_a_sure_row_is_sure(top, dtype):
    mean = torch.tensor([[top, 0.0, 0.0], [0.0, 0.0, -top]], dtype=dtype)
    found = LaplaceBridge().softmax(mean, torch.eye(3, dtype=dtype).expand(2, 3, 3))
    assert torch.allclose(found, torch.tensor([[1, 0, 0], [0.5, 0.5, 0]], dtype=dtype))


@pytest.mark.parametrize("link", [LaplaceBridge(), Tempered(3.0, LaplaceBridge())], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_choices_that_are_not_there_take_no_part_in_the_laplace_bridge(link, dtype):
    mean, covariance = gaussian()
    mean, covariance = mean.to(dtype), covariance.to(dtype)
    few = mean.clone()
    few[:, 2:] = ABSENT
    centring = (torch.eye(2) - 0.5).to(dtype)
    own = centring @ covariance[:, :2, :2] @ centring
    found = link.softmax(few, covariance)
    assert torch.equal(found[:, 2:], torch.zeros(N, 2, dtype=dtype))
    expected = link.softmax(mean[:, :2], own)
    assert torch.allclose(found[:, :2], expected, atol=1e-9 if dtype == torch.float64 else 0.02)
    mixed = link.softmax(torch.cat([few, mean]), covariance.repeat(2, 1, 1))
    assert torch.equal(mixed[N:], link.softmax(mean, covariance))


def test_the_only_choice_of_a_row_has_all_of_the_laplace_bridge():
    mean = torch.tensor([[0.3, ABSENT, ABSENT]])
    found = LaplaceBridge().softmax(mean, torch.eye(3)[None])
    assert found.tolist() == [[1.0, 0.0, 0.0]]


def test_the_laplace_bridge_has_no_independent_answers():
    mean, covariance = gaussian()
    with pytest.raises(ConfigError, match="multi-label"):
        LaplaceBridge().sigmoid(mean, covariance.diagonal(dim1=1, dim2=2))


# ---------------------------------------------------------------- all of them


@pytest.mark.parametrize("link", [MonteCarlo(64), Probit(), LaplaceBridge()], ids=repr)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_probabilities_are_some_whatever_the_variance(link, scale):
    mean, covariance = gaussian(spread=20.0)
    probabilities = link.softmax(mean, scale * covariance)
    assert bool(torch.isfinite(probabilities).all())
    assert bool((probabilities >= 0).all())
    assert torch.allclose(probabilities.sum(-1), torch.ones(N).double())


@pytest.mark.parametrize("link", [MonteCarlo(64), Probit()], ids=repr)
def test_float32_stays_float32(link):
    mean, covariance = gaussian()
    assert link.softmax(mean.float(), covariance.float()).dtype == torch.float32


@pytest.mark.parametrize("link", [LogOdds(), Probit(), MonteCarlo(64)])
def test_a_temperature_divides_the_outputs(link):
    mean = torch.randn(5, 3, generator=seeded(0), dtype=torch.float64)
    root = torch.randn(5, 3, 3, generator=seeded(1), dtype=torch.float64)
    covariance = root @ root.transpose(1, 2)
    tempered = Tempered(0.5, link)
    assert torch.allclose(
        tempered.softmax(mean, covariance), link.softmax(2 * mean, 4 * covariance)
    )
    assert torch.allclose(
        tempered.information(mean, covariance), link.information(2 * mean, 4 * covariance)
    )
    variance = covariance.diagonal(dim1=1, dim2=2)
    assert torch.allclose(tempered.sigmoid(mean, variance), link.sigmoid(2 * mean, 4 * variance))
    if link.direction(mean) is not None:
        assert torch.allclose(tempered.direction(mean), link.direction(2 * mean))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan")])
def test_what_is_no_temperature(temperature):
    with pytest.raises(ConfigError, match="above 0"):
        Tempered(temperature)


@pytest.mark.parametrize("given", [np.array([1.0, 2.0]), [1.5], "2", torch.ones(1), 0.0, math.nan])
def test_a_temperature_is_one_number(given):
    with pytest.raises(ConfigError, match="one number above 0"):
        Tempered(given)


@pytest.mark.parametrize("given", [np.float32(2), torch.tensor(2.0), 2])
def test_a_number_of_any_library_is_a_temperature(given):
    assert repr(Tempered(given)) == repr(Tempered(2.0))
