"""The rule that counts only the movement of the weights which the data can see."""

import pytest
import torch

from posthoc_bhpeft import MAP, Linearized, MatchedPrecision, Probit, Tempered, bayesianize
from posthoc_bhpeft.blocks import Kind
from posthoc_bhpeft.evidence import BlockSpectrum, LaplaceEvidence, best_visible_precision
from posthoc_bhpeft.likelihood import Bernoulli, Categorical, Gaussian
from posthoc_bhpeft.predictive.gradients import LabelGradients, label_gradients, label_log_odds
from posthoc_bhpeft.selection import (
    FixedPrecision,
    Grouping,
    LaplaceFit,
    LeaveOneOut,
    MarginalLikelihood,
    VisiblePrecision,
    spread,
)
from posthoc_bhpeft.selection.leftout import LeftOutRows, products
from tests.models import mlp, pairs, posterior_of, seeded, targets


def spectrum(eigenvalues, movement, kind=Kind.LORA):
    return BlockSpectrum(
        kind,
        torch.tensor(eigenvalues, dtype=torch.float64),
        torch.tensor(movement, dtype=torch.float64),
    )


def a_fit(*spectra):
    named = {f"block {index}": one for index, one in enumerate(spectra)}
    evidence = LaplaceEvidence(named, -10.0, 20, 3)
    return LaplaceFit(evidence, Categorical(), lambda loader, link: iter(()), iter, [])


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


def test_the_matched_precision_never_makes_predictions_surer_or_other_and_says_why():
    model, loader = mlp(3, 4, 3), pairs((6, 3), 3)
    bayes = bayesianize(model, loader, prior=MatchedPrecision(), progress=False)
    assert len(set(bayes.posterior.prior.precision.values())) == 1
    assert "as large as the network's" in bayes.reason
    ours, plain = bayes.predict(loader[0]), bayes.predict(loader[0], MAP())
    assert torch.equal(ours.predicted, plain.predicted)
    assert bool((ours.probabilities.amax(-1) <= plain.probabilities.amax(-1) + 1e-12).all())


def test_a_network_that_is_too_unsure_predicts_at_the_temperature_that_it_names():
    model = mlp(3, 4, 3)
    inputs = torch.randn(120, 3, generator=seeded(0), dtype=next(model.parameters()).dtype)
    # Right on every row, and unsure of all of them.
    with torch.no_grad():
        for parameter in model[-1].parameters():
            parameter.mul_(0.2)
        labels = model(inputs).argmax(-1)
    batches = [(inputs[:60], labels[:60]), (inputs[60:], labels[60:])]
    few = bayesianize(model, batches[:1], progress=False)
    assert "temperature 1.00: 60 rows are too few" in few.reason
    assert few.predictive == Linearized()
    bayes = bayesianize(model, batches, progress=False)
    link = bayes.predictive.link
    assert isinstance(link, Tempered)
    assert link.temperature < 0.8
    assert f"temperature {link.temperature:.2f}: 120 training answers" in bayes.reason
    assert len(set(bayes.posterior.prior.precision.values())) == 1
    ours, plain = bayes.predict(inputs), bayes.predict(inputs, MAP())
    assert torch.equal(ours.predicted, plain.predicted)
    assert ours.probabilities.amax(-1).mean() > plain.probabilities.amax(-1).mean()


def test_a_predictive_that_is_asked_for_is_taken_as_it_is():
    model, loader = mlp(3, 4, 3), pairs((6, 3), 3)
    bayes = bayesianize(model, loader, predictive=Linearized(Probit()), progress=False)
    assert bayes.predictive == Linearized(Probit())


@pytest.mark.parametrize("sketch_size", [5, 10**6])
def test_gradients_of_rows_by_autograd(sketch_size):
    """Inner products of unsketched gradients are those of autograd's; a sketch has its own size."""
    model, loader = mlp(3, 4, 3), pairs((6, 3), 3)
    posterior = bayesianize(model, loader, prior=FixedPrecision(2.0), progress=False).posterior
    parts = label_gradients(
        model, posterior.blocks, posterior.bases, Categorical(), loader, sketch_size=sketch_size
    )
    found = LabelGradients.joined(parts, expected=len(loader))
    inputs, labels = (torch.cat([batch[i] for batch in loader]) for i in (0, 1))
    parameters = [p for p in model.parameters() if p.requires_grad]
    rows = []
    for x, y in zip(inputs, labels, strict=True):
        log_odds = label_log_odds(Categorical(), model(x[None]), y[None])
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(log_odds[0], parameters)]))
    exact = torch.stack(rows).double()
    assert torch.allclose(found.energies.sum(0).double(), exact.square().sum(1), rtol=1e-4)
    if sketch_size == 5:
        assert found.sketches.shape == (len(exact), 5)
    else:
        products = found.sketches.double() @ found.sketches.double().T
        assert torch.allclose(products, exact @ exact.T, rtol=1e-3, atol=1e-5)


def test_answers_of_multi_label_rows_choose_a_temperature_too():
    model = mlp(3, 4, 3)
    inputs = torch.randn(100, 3, generator=seeded(0), dtype=next(model.parameters()).dtype)
    loader = [(inputs, torch.randint(2, (100, 3), generator=seeded(1)))]
    bayes = bayesianize(model, loader, likelihood=Bernoulli(), progress=False)
    assert "300 training answers" in bayes.reason


def several_labels(n_rows, n_labels):
    """A small model and rows with several labels each."""
    model = mlp(3, 4, n_labels)
    inputs = torch.randn(n_rows, 3, generator=seeded(0), dtype=next(model.parameters()).dtype)
    labels = torch.randint(2, (n_rows, n_labels), generator=seeded(1))
    halves = (n_rows + 1) // 2
    return model, list(zip(inputs.split(halves), labels.split(halves), strict=True))


def gradients_of(model, loader, **options):
    """Those of a fitted model's answers."""
    posterior = posterior_of(model, loader, likelihood=Bernoulli())
    parts = label_gradients(
        model, posterior.blocks, posterior.bases, Bernoulli(), loader, **options
    )
    return LabelGradients.joined(parts, expected=10)


def test_some_answers_of_a_row_are_those_among_all():
    model, loader = several_labels(20, 5)
    every, some = gradients_of(model, loader), gradients_of(model, loader, n_answers=2)
    assert some.chosen.shape == (20, 2)
    # Two different answers of each row, and not the same of every row.
    assert bool((some.chosen[:, 0] != some.chosen[:, 1]).all())
    assert len(some.chosen.unique()) == 5
    flat = (torch.arange(20)[:, None] * 5 + some.chosen).flatten()
    assert torch.allclose(some.sketches, every.sketches[flat])
    assert torch.allclose(some.energies, every.energies[:, flat])
    odds = every.log_odds(Bernoulli(), 2.0)
    assert torch.equal(some.log_odds(Bernoulli(), 2.0), odds[flat])
    assert every.chosen is None


def test_some_answers_stand_for_all_of_them():
    model, loader = several_labels(40, 4)
    every, some = gradients_of(model, loader), gradients_of(model, loader, n_answers=2)
    whole, part = (LeftOutRows.of(Bernoulli(), one, 80) for one in (every, some))
    # Twice the rows that were read; of the part each answer stands for two of its row too.
    assert whole.dual.weights.sum() == pytest.approx(float(part.dual.weights.sum()), rel=0.02)
    assert part.dual.weights.max() <= 4 * 0.25
    flat = (torch.arange(40)[:, None] * 4 + some.chosen).flatten()
    assert torch.allclose(part.dual.weights, 2 * whole.dual.weights[flat])
    inside, exact = part.dual.inside(1.0), whole.dual.inside(1.0)[flat]
    assert inside.mean() == pytest.approx(float(exact.mean()), rel=0.1)


def test_no_more_answers_than_asked_for_are_left_out():
    rule = LeaveOneOut(max_answers=100)
    assert rule.answers_a_row(Bernoulli(), 6, 20) == 5
    assert rule.answers_a_row(Bernoulli(), 6, 10) == 6
    assert rule.answers_a_row(Bernoulli(), 6, 1000) == 1
    assert rule.answers_a_row(Categorical(), 6, 20) == 1
    model, loader = several_labels(100, 3)
    reason = bayesianize(model, loader, likelihood=Bernoulli(), prior=rule, progress=False).reason
    assert "100 training answers" in reason


def test_rows_without_a_label_are_left_out():
    model, (first, *others) = mlp(3, 4, 3), pairs((6, 3), 3)
    inputs, labels = first
    gap = labels.clone()
    gap[0] = -100
    with_gap = bayesianize(model, [(inputs, gap), *others], progress=False)
    without = bayesianize(model, [(inputs[1:], labels[1:]), *others], progress=False)
    assert with_gap.reason == without.reason


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


def test_products_of_rows_are_in_double_precision_however_wide_the_rows():
    rows = torch.randn(5, 2500, generator=seeded(0))
    found = products(rows)
    assert found.dtype == torch.float64
    assert torch.allclose(found, rows.double() @ rows.double().T, rtol=1e-12)
