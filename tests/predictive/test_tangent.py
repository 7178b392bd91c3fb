"""The linearised model along drawn weights."""

import pytest
import torch

from posthoc_bhpeft import Gaussian, Linearized, Tangent, Tempered
from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.likelihood import Categorical
from posthoc_bhpeft.predictive.tangent import ROUGH_STEP, STEPS, step_for
from tests.contracts import check_predictive
from tests.models import mlp, pairs, posterior_of, seeded
from tests.oracles import jacobian


def test_it_is_a_predictive():
    check_predictive(Tangent(4))


def test_a_change_is_the_jacobian_times_the_draw():
    model, loader = mlp(3, 4, 3), pairs((6, 3), 3)
    posterior, inputs = posterior_of(model, loader), loader[0][0]
    (change,) = Tangent(1, seed=5).changes(model, posterior, inputs, positions=False)
    drawn = posterior.sample(1, seeded(5))
    exact = sum(
        torch.einsum("ncpq,pq->nc", jac, drawn[name][0] - posterior.mean[name])
        for name, jac in jacobian(model, posterior.blocks, loader[0]).items()
    )
    assert torch.allclose(change, exact, rtol=1e-6)
    (outputs,) = Tangent(1, seed=5).draws(model, posterior, inputs, positions=False)
    assert torch.allclose(outputs, model(inputs) + exact, rtol=1e-6)


def test_many_draws_are_the_linearised_predictive():
    model, loader = mlp(3, 4, 3), pairs((6, 3), 3)
    posterior, inputs = posterior_of(model, loader), loader[0][0]
    exact = Linearized().predict(model, posterior, Categorical(), inputs)
    drawn = Tangent(2000).predict(model, posterior, Categorical(), inputs)
    # The variance has a relative standard error of sqrt(2 / 2000), 3 %.
    assert torch.allclose(drawn.epistemic, exact.epistemic, rtol=0.15)
    assert torch.allclose(drawn.probabilities, exact.probabilities, atol=0.02)
    few = Tangent(2).predict(model, posterior, Categorical(), inputs)
    assert not torch.allclose(few.epistemic, exact.epistemic, rtol=0.15)


def test_a_temperature_is_that_of_the_link():
    """Against `Tempered` with the covariance of the same draws."""
    model, loader = mlp(3, 4, 3), pairs((6, 3), 3)
    posterior, inputs = posterior_of(model, loader), loader[0][0]
    way = Tangent(3, seed=2, temperature=0.4)
    changes = torch.stack(list(way.changes(model, posterior, inputs, positions=False)))
    covariance = torch.einsum("snc,snk->nck", changes, changes) / 3
    said = way.predict(model, posterior, Categorical(), inputs)
    assert torch.equal(said.logits, model(inputs))
    assert torch.allclose(said.probabilities, Tempered(0.4).softmax(said.logits, covariance))
    exact = Tempered(0.4).information(said.logits, covariance)
    assert torch.allclose(said.epistemic, exact.minimum(said.total))
    drawn = torch.stack(list(way.draws(model, posterior, inputs, positions=False)))
    assert torch.allclose(drawn, (model(inputs) + changes) / 0.4)


def test_single_precision_is_close_to_double():
    model, loader = mlp(3, 4, 3), pairs((6, 3), 3)
    posterior, inputs = posterior_of(model, loader), loader[0][0]
    exact = torch.stack(list(Tangent(3).changes(model, posterior, inputs, positions=False)))
    single = list(Tangent(3).changes(model.float(), posterior, inputs.float(), positions=False))
    assert torch.allclose(torch.stack(single).double(), exact, rtol=0.01, atol=1e-3)


def test_the_step_is_that_of_the_coarsest_format():
    model = mlp(3, 4, 3)
    assert step_for(model) == STEPS[torch.float64]
    model[0].float()
    assert step_for(model) == STEPS[torch.float32]
    model[2].bfloat16()
    assert step_for(model) == ROUGH_STEP


def test_what_is_no_softmax_is_refused():
    model, loader = mlp(3, 2), pairs((4, 3), 2)
    posterior = posterior_of(model, loader)
    with pytest.raises(ConfigError, match=r"Gaussian.*Linearized\(\)"):
        Tangent().predict(model, posterior, Gaussian(1.0), loader[0][0])
    with pytest.raises(ConfigError, match="at least 1"):
        Tangent(0)
    with pytest.raises(ConfigError, match="above 0"):
        Tangent(temperature=0.0)
