"""Output directions: exact ones sum to the Hessian, random ones do so on average."""

import pytest
import torch

from posthoc_bhpeft.blocks import discover
from posthoc_bhpeft.curvature import (
    Auto,
    Contrasts,
    DenseGGN,
    EmpiricalFisher,
    Exact,
    RandomSigns,
    Softened,
    fit_curvature,
)
from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.likelihood import Bernoulli, Categorical, Gaussian
from tests.models import mlp, pairs, seeded
from tests.oracles import dense_ggn, output_hessians

LIKELIHOODS = [Categorical(), Bernoulli(), Gaussian(0.5)]
OUTPUTS = 2 * torch.randn(4, 3, generator=seeded(), dtype=torch.float64)


def labels_for(likelihood):
    return torch.tensor([0, 2, 1, 1]) if isinstance(likelihood, Categorical) else torch.zeros(4, 3)


@pytest.mark.parametrize("directions", [Exact(), Contrasts(), Auto()], ids=repr)
@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=repr)
def test_exact_directions_sum_to_the_hessian(directions, likelihood):
    labels = labels_for(likelihood)
    drawn = directions.draw(likelihood, OUTPUTS, labels, None)
    assert drawn.shape[1:] == OUTPUTS.shape
    total = torch.einsum("knc,knd->ncd", drawn, drawn)
    assert torch.allclose(total, output_hessians(likelihood, OUTPUTS, labels))


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=repr)
def test_random_signs_have_the_hessian_as_their_mean(likelihood):
    labels, n = labels_for(likelihood), 4000
    drawn = RandomSigns(n).draw(likelihood, OUTPUTS, labels, seeded()) * n**0.5
    products = torch.einsum("knc,knd->kncd", drawn, drawn)
    error = (products.mean(0) - output_hessians(likelihood, OUTPUTS, labels)).abs()
    standard_error = products.std(0) / n**0.5
    assert bool((error < 5 * standard_error + 1e-12).all())
    assert bool((standard_error > 0).any())


def test_random_signs_give_an_unbiased_curvature():
    model, loader = mlp(2, 3, 3), pairs((3, 2), 3, batches=1)
    blocks, likelihood, generator, n = discover(model), Categorical(), seeded(), 400
    estimator = DenseGGN(directions=RandomSigns())
    draws = [
        fit_curvature(model, blocks, loader, likelihood, estimator, generator=generator).operators
        for _ in range(n)
    ]
    for name, exact in dense_ggn(model, blocks, loader, likelihood).items():
        each = torch.stack([draw[name].dense() for draw in draws])
        standard_error = each.std(0) / n**0.5
        assert bool(((each.mean(0) - exact).abs() < 5 * standard_error + 1e-12).all()), name
        assert bool((standard_error > 0).any())


def test_more_samples_are_closer():
    exact = output_hessians(Categorical(), OUTPUTS, labels_for(Categorical()))

    def error(samples):
        drawn = RandomSigns(samples).draw(Categorical(), OUTPUTS, OUTPUTS, seeded())
        return float((torch.einsum("knc,knd->ncd", drawn, drawn) - exact).norm())

    assert error(1000) < 0.3 * error(1)


def test_random_signs_draw_other_signs_for_each_row():
    outputs = OUTPUTS[:1].expand(50, -1)
    (drawn,) = RandomSigns().draw(Categorical(), outputs, outputs, seeded())
    assert len({tuple(row.tolist()) for row in drawn}) == 4  # two contrasts, two signs each


@pytest.mark.parametrize("samples", [0, -1])
def test_no_sample_is_refused(samples):
    with pytest.raises(ConfigError, match="at least 1"):
        RandomSigns(samples)


@pytest.mark.parametrize(
    ("likelihood", "n_outputs", "chosen"),
    [
        (Categorical(), 2, Contrasts()),
        (Categorical(), 4, Contrasts()),
        (Categorical(), 5, RandomSigns(2)),
        (Gaussian(), 1, Contrasts()),
        (Bernoulli(), 4, RandomSigns(2)),
    ],
)
def test_auto_is_exact_for_few_outputs_and_random_for_many(likelihood, n_outputs, chosen):
    assert Auto().choose(likelihood, n_outputs) == chosen


def test_auto_draws_what_it_chose():
    wide = torch.randn(4, 20, generator=seeded(), dtype=torch.float64)
    drawn = Auto().draw(Categorical(), wide, wide, seeded(1))
    assert torch.equal(drawn, RandomSigns(2).draw(Categorical(), wide, wide, seeded(1)))


def distillation(outputs, teacher, temperature):
    """`T^2 KL(softmax(teacher / T) || softmax(outputs / T))`, summed over rows."""
    wanted = (teacher / temperature).softmax(-1)
    divergence = wanted * (wanted.log() - (outputs / temperature).log_softmax(-1))
    return temperature**2 * divergence.sum()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_softened_directions_sum_to_the_hessian_of_distillation(temperature):
    drawn = Softened(temperature).draw(Categorical(), OUTPUTS, labels_for(Categorical()), None)
    total = torch.einsum("knc,knd->ncd", drawn, drawn)
    full = torch.autograd.functional.hessian(
        lambda outputs: distillation(outputs, OUTPUTS, temperature), OUTPUTS
    )
    rows = range(len(OUTPUTS))
    assert torch.allclose(total, torch.stack([full[n, :, n] for n in rows]))


def test_softened_directions_do_not_vanish_where_the_softmax_is_saturated():
    certain = torch.tensor([[30.0, 0.0, 0.0]], dtype=torch.float64)
    plain, soft = (
        float(directions.draw(Categorical(), certain, certain, None).square().sum())
        for directions in (Auto(), Softened(4.0))
    )
    assert plain < 1e-11 < 1e-3 < soft


def test_softened_directions_of_regression_are_those_of_regression():
    plain = Auto().draw(Gaussian(0.5), OUTPUTS, OUTPUTS, None)
    assert torch.equal(Softened(4.0).draw(Gaussian(0.5), OUTPUTS, OUTPUTS, None), plain)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_is_above_zero(temperature):
    with pytest.raises(ConfigError, match="above 0"):
        Softened(temperature)


def test_empirical_fisher_is_one_direction_the_gradient_of_the_loss():
    labels = labels_for(Categorical())
    (drawn,) = EmpiricalFisher().draw(Categorical(), OUTPUTS, labels, None)
    outputs = OUTPUTS.clone().requires_grad_()
    (expected,) = torch.autograd.grad(Categorical().nll(outputs, labels).sum(), outputs)
    assert torch.allclose(drawn, expected)
