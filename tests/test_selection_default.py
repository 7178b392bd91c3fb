"""The rule that counts only the movement of the weights which the data can see."""

import pytest
import torch

from posthoc_bhpeft import MAP, bayesianize
from posthoc_bhpeft.blocks import Kind
from posthoc_bhpeft.evidence import BlockSpectrum, LaplaceEvidence, best_visible_precision
from posthoc_bhpeft.likelihood import Categorical, Gaussian
from posthoc_bhpeft.selection import (
    Grouping,
    LaplaceFit,
    MarginalLikelihood,
    VisiblePrecision,
    spread,
)
from tests.models import mlp, pairs, targets


def spectrum(eigenvalues, movement, kind=Kind.LORA):
    return BlockSpectrum(
        kind,
        torch.tensor(eigenvalues, dtype=torch.float64),
        torch.tensor(movement, dtype=torch.float64),
    )


def a_fit(*spectra):
    named = {f"block {index}": one for index, one in enumerate(spectra)}
    evidence = LaplaceEvidence(named, -10.0, 20, 3)
    return LaplaceFit(evidence, Categorical(), lambda loader, link: iter(()), [])


def test_with_equal_eigenvalues_it_is_one_over_the_mean_square_movement():
    assert best_visible_precision([spectrum([2.0] * 4, [1.0, 0, 3, 0])]) == pytest.approx(1.0)


def test_movement_that_the_data_cannot_see_does_not_count():
    seen = spectrum([3.0, 2.0], [0.5, 0.1])
    drifted = spectrum([3.0, 2.0, 0.0, 0.0], [0.5, 0.1, 100.0, 50.0])
    assert best_visible_precision([drifted]) == pytest.approx(best_visible_precision([seen]))


def test_it_is_the_fixed_point_of_effective_parameters_over_visible_movement():
    one = spectrum([5.0, 1.0, 0.1, 0.01], [0.3, 0.2, 2.0, 4.0])
    d = best_visible_precision([one])
    shrink = one.eigenvalues / (one.eigenvalues + d)
    assert d == pytest.approx(float(shrink.sum() / (shrink * one.squared_movement).sum()))


def test_with_drift_it_is_narrower_than_plain_evidence():
    fit = a_fit(spectrum([5.0, 1.0, 0.001], [0.3, 0.2, 20.0]))
    visible = VisiblePrecision().choose(fit).precision["block 0"]
    assert visible > MarginalLikelihood().choose(fit).precision["block 0"]


def test_one_precision_a_kind():
    fit = a_fit(spectrum([2.0] * 2, [1.0, 1]), spectrum([2.0] * 2, [4.0, 4], Kind.PREFIX))
    choice = VisiblePrecision(Grouping.KIND).choose(fit)
    assert choice.precision == pytest.approx({"block 0": 1.0, "block 1": 0.25})
    assert "lora 1" in choice.reason
    assert "prefix 0.25" in choice.reason


def test_the_default_never_makes_predictions_surer_or_other_and_says_why():
    model, loader = mlp(3, 4, 3), pairs((6, 3), 3)
    bayes = bayesianize(model, loader, progress=False)
    assert len(set(bayes.posterior.prior.precision.values())) == 1
    assert "as large as the network's" in bayes.reason
    ours, plain = bayes.predict(loader[0]), bayes.predict(loader[0], MAP())
    assert torch.equal(ours.predicted, plain.predicted)
    assert bool((ours.probabilities.amax(-1) <= plain.probabilities.amax(-1) + 1e-12).all())


def test_regression_takes_the_visible_precision():
    model, loader = mlp(3, 4, 1), targets((8, 3), 1)
    default = bayesianize(model, loader, likelihood=Gaussian(), progress=False)
    visible = bayesianize(
        model, loader, likelihood=Gaussian(), prior=VisiblePrecision(), progress=False
    )
    assert default.posterior.prior.precision == visible.posterior.prior.precision


def test_batches_of_the_guard_are_spread_over_the_loader():
    batches = [[row] for row in range(100)]
    chosen = [batch[0] for batch in spread(batches, 10, 100)]
    assert chosen == list(range(0, 100, 10))
    assert len(spread(batches, 1000, 100)) == 100
