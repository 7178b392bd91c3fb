"""`Placed`: nothing changes where the model is there already; dtype, sides and files otherwise."""

import pytest
import torch

from posthoc_bhpeft import BayesianPeft
from posthoc_bhpeft.api import bayesianize
from posthoc_bhpeft.blocks import Observation, discover
from posthoc_bhpeft.curvature import (
    KFAC,
    DenseGGN,
    DiagonalGGN,
    KroneckerGGN,
    Placed,
    fit_curvature,
)
from posthoc_bhpeft.curvature.placed import smaller
from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.likelihood import Categorical
from posthoc_bhpeft.selection import FixedPrecision
from tests.contracts import check_curvature
from tests.hybrid.families import tiny_loader
from tests.models import lora, mlp, pairs, seeded


def fit(model, estimator, loader):
    blocks = discover(model)
    return fit_curvature(model, blocks, loader, Categorical(), estimator).operators


@pytest.mark.parametrize("estimator", [KroneckerGGN(), KFAC(), DiagonalGGN()], ids=repr)
def test_on_the_models_own_device_nothing_changes(estimator):
    model, loader = mlp(3, 4, 3), pairs((5, 3), 3)
    plain = fit(model, estimator, loader)
    for device in ("cpu", None):
        for name, operator in fit(model, Placed(estimator, device), loader).items():
            assert torch.equal(operator.dense(), plain[name].dense()), name


def test_the_contract_of_estimators_holds():
    check_curvature(Placed(KroneckerGGN(rank=1, wide=4)))


def test_sums_in_double_precision_of_a_model_in_single():
    model, loader = mlp(3, 4, 3).float(), [(x.float(), y) for x, y in pairs((5, 3), 3)]
    operators = fit(model, Placed(KroneckerGGN(), dtype="float64"), loader)
    plain = fit(model, KroneckerGGN(), loader)
    for name, operator in operators.items():
        assert operator.left.dtype == torch.float64
        assert torch.allclose(operator.dense().float(), plain[name].dense(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("estimator", [KroneckerGGN(), DiagonalGGN(), DenseGGN()], ids=repr)
def test_a_posterior_in_double_precision_is_a_prior_of_a_model_in_single(estimator):
    model, loader = mlp(3, 4, 3).float(), [(x.float(), y) for x, y in pairs((5, 3), 3)]

    def learn(curvature, prior):
        return bayesianize(model, loader, curvature=curvature, prior=prior, progress=False)

    wide = Placed(estimator, dtype="float64")
    first, other = (learn(one, FixedPrecision(2.0)) for one in (wide, estimator))
    again, expected = learn(wide, first.as_prior()), learn(estimator, other.as_prior())
    assert again.log_marginal_likelihood() == pytest.approx(
        expected.log_marginal_likelihood(), rel=1e-3
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    penalty, same = (float(one.as_prior().penalty(model).detach()) for one in (first, other))
    assert penalty == pytest.approx(same, rel=1e-4)


@pytest.mark.parametrize(("p", "q"), [(2, 9), (9, 2), (5, 5)])
@pytest.mark.parametrize("positions", [1, 40])
def test_what_is_copied_is_the_smaller_and_the_same_gradient(p, q, positions):
    rows = torch.randn(3, positions, p, generator=seeded(), dtype=torch.float64)
    columns = torch.randn(3, positions, q, generator=seeded(1), dtype=torch.float64)
    seen = Observation(rows, columns)
    moved = smaller(seen)
    assert torch.allclose(moved.gradient(), seen.gradient())
    before, after = (one.rows.numel() + one.columns.numel() for one in (seen, moved))
    assert after < before if positions == 40 else moved is seen


def test_observations_of_another_device_are_moved():
    """A meta tensor has no numbers, but it has a device."""
    block = discover(mlp(3, 4, 3))[0]
    accumulator = Placed(KroneckerGGN(), device="meta").accumulator(block)
    accumulator.add(Observation(torch.ones(2, 50, 4), torch.ones(2, 50, 3)))
    sums = accumulator.sums()
    assert {total.device.type for total in sums.values()} == {"meta"}
    assert {tuple(total.shape) for total in sums.values()} == {(4, 4), (3, 3)}


def test_half_precision_is_refused_with_the_reason():
    with pytest.raises(ConfigError, match=r"bfloat16.*float32 or float64.*stop growing.*rank"):
        Placed(KroneckerGGN(), dtype="bfloat16")


def test_the_reason_is_true():
    """Ones summed in bfloat16 stop at 256."""
    total = torch.zeros((), dtype=torch.bfloat16)
    for _ in range(1000):
        total += 1
    assert float(total) == 256


def test_it_is_saved_and_loaded_in_its_precision(tmp_path):
    model = lora().float()
    curvature = Placed(KroneckerGGN(rank=2, wide=8), dtype="float64")
    loader = tiny_loader(model)
    bayes = bayesianize(model, loader, curvature=curvature, progress=False)
    bayes.save_pretrained(tmp_path)
    again = BayesianPeft.from_pretrained(tmp_path, model=model)
    assert again.curvature == curvature
    for name, operator in bayes.posterior.curvature.items():
        assert torch.equal(again.posterior.curvature[name].dense(), operator.dense()), name
    before, after = bayes.predict(loader[0]), again.predict(loader[0])
    assert torch.equal(before.probabilities, after.probabilities)
