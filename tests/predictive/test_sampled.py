"""Sampled weights against a loop over models with these weights; and the trained weights alone."""

import copy

import pytest
import torch

from posthoc_bhpeft.curvature import KroneckerGGN
from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.likelihood import Bernoulli, Categorical, Gaussian
from posthoc_bhpeft.predictive import MAP, Linearized, MonteCarlo, Sampled
from tests.contracts import check_prediction, check_predictive
from tests.hybrid.families import tiny_batch, tiny_loader
from tests.models import hybrid, lora, mlp, pairs, posterior_of, prefix, targets


@pytest.mark.parametrize("predictive", [Sampled(4), MAP()], ids=repr)
def test_the_contract(predictive):
    check_predictive(predictive)


def brute_force(model, posterior, inputs, samples, seed=0):
    """Outputs `(S, N, C)` of copies of the model whose weights are overwritten."""
    generator = torch.Generator().manual_seed(seed)
    outputs = []
    for _ in range(samples):
        other = copy.deepcopy(model).eval()
        parameters = dict(other.named_parameters())
        drawn = posterior.sample(1, generator)
        with torch.no_grad():
            for block in posterior.blocks:
                block.view.write(parameters[block.parameter], drawn[block.name][0])
            result = other(inputs) if isinstance(inputs, torch.Tensor) else other(**inputs).logits
        outputs.append(result)
    return torch.stack(outputs)


@pytest.mark.parametrize(
    "make",
    [hybrid, lora, prefix, lambda: hybrid("llama"), lambda: hybrid("albert")],
    ids=["hybrid", "lora", "prefix", "llama", "albert"],
)
def test_sampled_is_the_mean_over_models_with_the_sampled_weights(make):
    model = make()
    posterior = posterior_of(model, tiny_loader(model), curvature=KroneckerGGN(), precision=5.0)
    batch = tiny_batch(model, seed=5, labels=False)
    draws = brute_force(model, posterior, batch, 3)
    prediction = Sampled(3).predict(model, posterior, Categorical(), batch)
    assert draws.var(0).min() > 1e-4
    assert torch.allclose(prediction.probabilities, draws.softmax(-1).mean(0), atol=1e-9)
    assert torch.equal(prediction.logits, model(**batch).logits.detach())
    centred = draws - draws.mean(0)
    exact = torch.einsum("snc,snk->nck", centred, centred) / 2
    assert torch.allclose(prediction.covariance, exact, atol=1e-9)


def test_another_seed_draws_other_weights():
    model, loader = mlp(3, 4, 3), pairs((6, 3), 3)
    posterior = posterior_of(model, loader)
    first, second = (
        Sampled(4, seed).predict(model, posterior, Categorical(), loader[0][0]) for seed in (0, 1)
    )
    assert not torch.equal(first.probabilities, second.probabilities)


def test_for_a_narrow_posterior_sampled_and_linearised_agree():
    model, loader = mlp(3, 4, 3), pairs((6, 3), 3)
    posterior = posterior_of(model, loader, precision=1e4)
    inputs = loader[0][0]
    sampled = Sampled(3000).predict(model, posterior, Categorical(), inputs)
    linear = Linearized(MonteCarlo(3000), centred=False)
    linear = linear.predict(model, posterior, Categorical(), inputs)
    # The relative standard error of a variance from 3000 draws is 2.6 %.
    ratio = sampled.covariance.diagonal(dim1=1, dim2=2) / linear.covariance.diagonal(dim1=1, dim2=2)
    assert bool(((ratio - 1).abs() < 5 * 0.026).all())
    assert torch.allclose(sampled.probabilities, linear.probabilities, atol=2e-3)


def test_one_draw_has_no_spread():
    model, loader = mlp(3, 4, 3), pairs((6, 3), 3)
    prediction = Sampled(1).predict(model, posterior_of(model, loader), Categorical(), loader[0][0])
    assert bool((prediction.epistemic == 0).all())
    assert bool((prediction.covariance == 0).all())


def test_sampled_regression_predicts_the_mean_of_the_draws():
    model, loader = mlp(3, 4, 2), targets((6, 3), 2)
    posterior = posterior_of(model, loader, likelihood=Gaussian(0.3))
    draws = brute_force(model, posterior, loader[0][0], 5)
    prediction = Sampled(5).predict(model, posterior, Gaussian(0.3), loader[0][0])
    assert prediction.probabilities is None
    assert torch.allclose(prediction.predicted, draws.mean(0))


def test_sampled_independent_answers():
    model, loader = mlp(3, 4, 2), [(x, (y > 0).double()) for x, y in targets((6, 3), 2)]
    posterior = posterior_of(model, loader, likelihood=Bernoulli())
    prediction = Sampled(5).predict(model, posterior, Bernoulli(), loader[0][0])
    check_prediction(prediction, 6, 2)
    draws = brute_force(model, posterior, loader[0][0], 5)
    assert torch.allclose(prediction.probabilities, draws.sigmoid().mean(0))


@pytest.mark.parametrize(
    ("likelihood", "function"),
    [(Categorical(), lambda f: f.softmax(-1)), (Bernoulli(), torch.sigmoid)],
)
def test_map_is_the_model_itself(likelihood, function):
    model, inputs = mlp(3, 4, 3), pairs((6, 3), 3)[0][0]
    prediction = MAP().predict(model, None, likelihood, inputs)
    assert torch.allclose(prediction.probabilities, function(model(inputs)).detach())
    assert prediction.covariance is None
    assert bool((prediction.epistemic == 0).all())
    assert torch.equal(prediction.total, prediction.aleatoric)


def test_map_regression_has_the_entropy_of_the_noise_alone():
    model, inputs = mlp(3, 4, 2), targets((6, 3), 2)[0][0]
    prediction = MAP().predict(model, None, Gaussian(0.3), inputs)
    normal = torch.distributions.Normal(0.0, 0.3**0.5)
    assert torch.allclose(prediction.total, 2 * normal.entropy().double().expand(6))
    assert bool((prediction.epistemic == 0).all())
    assert prediction.covariance is None


@pytest.mark.parametrize("samples", [0, -3])
def test_no_sample_is_refused(samples):
    with pytest.raises(ConfigError, match="at least 1"):
        Sampled(samples)
