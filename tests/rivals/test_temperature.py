"""The temperature against a dense grid, its edge cases, and what it does to a prediction."""

import math

import pytest
import torch
from torch import Tensor

from posthoc_bhpeft.errors import ConfigError, DataError, NonFiniteError
from posthoc_bhpeft.likelihood import Bernoulli, Categorical, Gaussian
from posthoc_bhpeft.predictive import LogOdds, Prediction
from posthoc_bhpeft.predictive.uncertainty import predict_gaussian_outputs, predict_point
from posthoc_bhpeft.rivals import Temperature, fit_temperature
from tests.models import seeded

GRID = torch.logspace(math.log10(0.05), math.log10(20), 40001, dtype=torch.float64)


def drawn(n_rows=60, n_classes=4, *, sharper=3.0, seed=0):
    """Logits `sharper` times too sharp for their labels, so the best temperature is near that."""
    generator = seeded(seed)
    logits = torch.randn(n_rows, n_classes, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
    return sharper * logits, labels


def point(logits: Tensor, labels: Tensor) -> Prediction:
    return predict_point(Categorical(), logits).with_labels(labels)


def softened(logits: Tensor, labels: Tensor) -> Prediction:
    """A predictive that is not a function of the logits alone."""
    variances = 1 + torch.arange(len(logits)).to(logits) % 5
    covariance = variances[:, None, None] * torch.eye(logits.shape[1]).to(logits)
    return predict_gaussian_outputs(Categorical(), logits, covariance, LogOdds()).with_labels(
        labels
    )


def nll(probabilities: Tensor, labels: Tensor) -> Tensor:
    return -probabilities.gather(1, labels[:, None]).log().sum()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("sharper", [0.4, 1.0, 3.0])
def test_it_is_the_best_of_a_dense_grid(sharper, seed):
    logits, labels = drawn(sharper=sharper, seed=seed)
    losses = torch.stack([nll((logits / t).softmax(-1), labels) for t in GRID])
    found = fit_temperature(point(logits, labels))
    assert found.value == pytest.approx(float(GRID[losses.argmin()]), rel=2e-4)
    exact = nll((logits / found.value).softmax(-1), labels)
    assert float(exact) <= float(losses.min()) + 1e-12
    assert found.after * found.rows == pytest.approx(float(exact))
    assert found.before * found.rows == pytest.approx(float(nll(logits.softmax(-1), labels)))
    assert (found.rows, found.at_bound) == (60, False)


def test_ours_plus_temperature_scales_the_log_of_our_probabilities():
    prediction = softened(*drawn())
    p, labels = prediction.probabilities, prediction.labels
    losses = torch.stack([nll((p.log() / t).softmax(-1), labels) for t in GRID])
    found = fit_temperature(prediction)
    assert found.value == pytest.approx(float(GRID[losses.argmin()]), rel=2e-4)
    torch.testing.assert_close(
        found.apply(prediction).probabilities, (p.log() / found.value).softmax(-1)
    )
    plain = fit_temperature(point(prediction.logits, labels))
    assert abs(plain.value - found.value) > 0.1


def test_multi_label_is_the_best_of_a_grid_over_all_answers():
    generator = seeded(1)
    logits = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    labels = torch.bernoulli(logits.sigmoid(), generator=generator)
    logits = 2.5 * logits
    losses = torch.stack([Bernoulli().nll(logits / t, labels).sum() for t in GRID])
    held_out = predict_point(Bernoulli(), logits).with_labels(labels)
    found = fit_temperature(held_out)
    assert found.value == pytest.approx(float(GRID[losses.argmin()]), rel=2e-4)
    after = found.apply(held_out)
    assert after.multilabel
    torch.testing.assert_close(after.probabilities, (logits / found.value).sigmoid())


def test_a_second_temperature_is_one():
    held_out = point(*drawn())
    once = fit_temperature(held_out)
    again = fit_temperature(once.apply(held_out))
    assert again.value == pytest.approx(1.0, abs=1e-9)
    assert again.before == pytest.approx(once.after)


def test_single_precision_gives_the_same_temperature():
    logits, labels = drawn()
    one = fit_temperature(point(logits, labels)).value
    assert fit_temperature(point(logits.float(), labels)).value == pytest.approx(one, rel=1e-5)


# ------------------------------------------------------------------- edges


def test_where_all_rows_are_right_it_stops_at_the_bound_and_says_so():
    logits, _ = drawn()
    found = fit_temperature(point(logits, logits.argmax(1)))
    assert (found.value, found.at_bound) == (0.05, True)
    assert "all of them are right" in found.describe()
    assert "where the search ends" in found.describe()


def test_where_labels_are_worse_than_chance_it_stops_at_the_other_bound():
    logits, _ = drawn()
    found = fit_temperature(point(logits, logits.argmin(1)), bounds=(0.5, 7.0))
    assert (found.value, found.at_bound) == (7.0, True)


def test_one_row_whose_label_is_the_second_class_has_a_best_temperature():
    logits = torch.tensor([[2.0, 1.0, -6.0]], dtype=torch.float64)
    found = fit_temperature(point(logits, torch.tensor([1])))
    losses = torch.stack([nll((logits / t).softmax(-1), torch.tensor([1])) for t in GRID])
    assert found.value == pytest.approx(float(GRID[losses.argmin()]), rel=2e-4)
    assert not found.at_bound
    assert "1 held-out rows" in found.describe()


def test_where_no_temperature_makes_a_difference_it_is_one():
    found = fit_temperature(point(torch.full((3, 2), 0.7), torch.tensor([0, 1, 0])))
    assert (found.value, found.at_bound) == (1.0, False)
    assert found.after == pytest.approx(math.log(2))


def test_very_sure_logits_do_not_overflow():
    logits = torch.tensor([[2000.0, 0.0], [0.0, 3000.0], [1000.0, 0.0]])
    found = fit_temperature(point(logits, torch.tensor([0, 1, 1])), bounds=(0.05, 5000))
    assert 100 < found.value < 5000
    assert math.isfinite(found.after)
    assert found.after < found.before


def test_a_probability_that_rounds_to_zero_is_held_at_the_smallest_number():
    prediction = softened(*drawn(n_rows=3))
    p = torch.tensor([[1.0, 0.0, 0.0, 0.0]] * 3)
    made = Prediction(prediction.logits, p, None, *[torch.full((3,), 0.1)] * 3)
    found = fit_temperature(made.with_labels(torch.tensor([0, 0, 1])))
    assert math.isfinite(found.before)
    assert found.value > 1


def test_rows_without_a_label_are_left_out():
    logits, labels = drawn()
    marked = labels.clone()
    marked[::3] = -100
    kept = marked != -100
    found = fit_temperature(point(logits, marked))
    assert found == fit_temperature(point(logits[kept], labels[kept]))
    assert found.rows == int(kept.sum())


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (None, "have no labels"),
        (torch.full((60,), -100), "are 60, none with a label"),
        (torch.full((60,), 4), "out of range"),
    ],
)
def test_errors_of_labels(labels, says):
    logits, _ = drawn()
    with pytest.raises(DataError, match=says):
        fit_temperature(predict_point(Categorical(), logits).with_labels(labels))


def test_other_errors():
    logits, labels = drawn()
    broken = logits.clone()
    broken[3, 1] = torch.nan
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        fit_temperature(point(broken, labels))
    for bounds in [(0, 1), (2, 1), (1, float("inf"))]:
        with pytest.raises(ConfigError, match="bounds="):
            fit_temperature(point(logits, labels), bounds=bounds)
    with pytest.raises(ConfigError, match="must be above 0"):
        Temperature(0.0, 1, 1.0, 1.0)
    regression = predict_point(Gaussian(1.0), logits).with_labels(logits)
    with pytest.raises(ConfigError, match="regression"):
        fit_temperature(regression)
    with pytest.raises(ConfigError, match="regression"):
        Temperature(2.0, 1, 1.0, 1.0).apply(regression)


# ----------------------------------------------------------- what it changes


@pytest.mark.parametrize("make", [point, softened])
@pytest.mark.parametrize("value", [0.3, 2.0, 15.0])
def test_it_keeps_the_class_and_splits_the_entropy_of_the_new_probabilities(make, value):
    before = make(*drawn())
    after = Temperature(value, 1, 1.0, 1.0).apply(before)
    assert torch.equal(after.predicted, before.predicted)
    torch.testing.assert_close(after.total, torch.special.entr(after.probabilities).sum(-1))
    torch.testing.assert_close(after.aleatoric + after.epistemic, after.total)
    torch.testing.assert_close(after.epistemic, torch.minimum(before.epistemic, after.total))
    assert bool((after.aleatoric >= 0).all())
    assert after.probabilities.dtype == before.probabilities.dtype


def test_logits_follow_only_where_the_probabilities_are_theirs():
    twice = Temperature(2.0, 1, 1.0, 1.0)
    network, ours = point(*drawn()), softened(*drawn())
    torch.testing.assert_close(twice.apply(network).logits, network.logits / 2)
    assert torch.equal(twice.apply(ours).logits, ours.logits)
    assert torch.equal(twice.apply(ours).labels, ours.labels)
