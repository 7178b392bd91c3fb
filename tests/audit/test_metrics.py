from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from posthoc_bhpeft.audit import metrics
from posthoc_bhpeft.errors import ConfigError, DataError, NonFiniteError

Pair = tuple[NDArray[np.float64], NDArray[np.int64]]


@pytest.fixture(params=[(300, 2), (400, 5), (50, 20)], ids=str)
def pair(request: pytest.FixtureRequest) -> Pair:
    rows, classes = request.param
    rng = np.random.default_rng(rows)
    p = rng.dirichlet(np.full(classes, 0.5), size=rows)
    return p, np.array([rng.choice(classes, p=row) for row in p])


def test_accuracy_nll_and_brier_by_hand() -> None:
    p = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
    y = torch.tensor([0, 1])
    assert metrics.accuracy(p, y) == 0.5
    nll = -(np.log(0.5) + np.log(0.2)) / 2
    assert metrics.negative_log_likelihood(p, y) == pytest.approx(nll, abs=1e-7)
    brier = ((0.25 + 0.09 + 0.04) + (0.01 + 0.64 + 0.49)) / 2
    assert metrics.brier_score(p, y) == pytest.approx(brier, abs=1e-7)


def test_agrees_with_scikit_learn(pair: Pair) -> None:
    from sklearn.metrics import accuracy_score, log_loss

    p, y = pair
    assert metrics.accuracy(p, y) == pytest.approx(accuracy_score(y, p.argmax(1)))
    expected = log_loss(y, p, labels=range(p.shape[1]))
    assert metrics.negative_log_likelihood(p, y) == pytest.approx(expected, rel=1e-12)


def test_calibration_error_agrees_with_torchmetrics(pair: Pair) -> None:
    from torchmetrics.functional.classification import multiclass_calibration_error

    p, y = pair
    expected = multiclass_calibration_error(
        torch.from_numpy(p), torch.from_numpy(y), num_classes=p.shape[1], n_bins=15, norm="l1"
    )
    assert metrics.expected_calibration_error(p, y) == pytest.approx(float(expected), abs=1e-6)


def test_brier_of_two_classes_is_twice_scikit_learns() -> None:
    from sklearn.metrics import brier_score_loss

    rng = np.random.default_rng(0)
    q, y = rng.random(100), rng.integers(0, 2, 100)
    found = metrics.brier_score(np.stack([1 - q, q], 1), y)
    assert found == pytest.approx(2 * brier_score_loss(y, q), rel=1e-12)


def test_bins_by_a_plain_loop(pair: Pair) -> None:
    p, y = pair
    confidence, right = p.max(1), p.argmax(1) == y
    error = 0.0
    for b in range(10):
        inside = (confidence > b / 10) & (confidence <= (b + 1) / 10)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert metrics.expected_calibration_error(p, y, bins=10) == pytest.approx(error, rel=1e-10)


def test_a_confidence_on_a_border_belongs_to_the_bin_below() -> None:
    p = np.array([[0.75, 0.25], [0.76, 0.24], [0.6, 0.4]])
    assert metrics.reliability(p, np.zeros(3), bins=4).counts.tolist() == [2, 1]


def test_bins_of_equal_mass_are_equal_and_keep_every_row(pair: Pair) -> None:
    p, y = pair
    counts = metrics.reliability(p, y, bins=10, equal_mass=True).counts
    assert counts.sum() == len(y)
    assert counts.max() - counts.min() <= 1


def test_one_confidence_for_all_rows_is_one_bin() -> None:
    p, y = np.tile([0.8, 0.2], (10, 1)), np.array([0] * 8 + [1] * 2)
    for equal_mass in (False, True):
        found = metrics.reliability(p, y, equal_mass=equal_mass)
        assert found.counts.tolist() == [10]
        assert found.error == pytest.approx(0.0, abs=1e-12)


def test_band_is_wilsons() -> None:
    # Wilson's interval of 7 in 10 at 95 %, from the closed form in Agresti and Coull (1998).
    p, y = np.tile([0.9, 0.1], (10, 1)), np.array([0] * 7 + [1] * 3)
    found = metrics.reliability(p, y)
    assert found.low[0] == pytest.approx(0.39678, abs=1e-5)
    assert found.high[0] == pytest.approx(0.89221, abs=1e-5)


def test_band_of_a_bin_without_errors_stays_inside_one() -> None:
    found = metrics.reliability(np.tile([0.9, 0.1], (5, 1)), np.zeros(5))
    assert found.high[0] <= 1.0
    assert found.low[0] < 0.9


def test_risk_coverage_by_sorting(pair: Pair) -> None:
    p, y = pair
    order = sorted(range(len(y)), key=lambda n: -p[n].max())
    risk = [
        sum(int(p[n].argmax() != y[n]) for n in order[: k + 1]) / (k + 1) for k in range(len(y))
    ]
    found = metrics.risk_coverage(p, y)
    np.testing.assert_allclose(found.risk, risk, atol=1e-12)
    assert found.area == pytest.approx(np.mean(risk))


def test_ties_are_the_mean_over_every_order() -> None:
    p, y = np.tile([0.6, 0.4], (6, 1)), np.array([0, 1, 1, 0, 1, 0])
    doubt = np.array([0.1, 0.2, 0.2, 0.2, 0.3, 0.3])
    wrong = y.astype(float)
    curves = [
        np.cumsum(wrong[list(order)]) / np.arange(1, 7)
        for order in itertools.permutations(range(6))
        if (np.diff(doubt[list(order)]) >= 0).all()
    ]
    assert len(curves) == 12
    np.testing.assert_allclose(metrics.risk_coverage(p, y, doubt).risk, np.mean(curves, axis=0))


def test_order_of_the_rows_does_not_matter(pair: Pair) -> None:
    p, y = np.round(pair[0], 1) + 1e-3, pair[1]
    p /= p.sum(1, keepdims=True)
    mixed = np.random.default_rng(1).permutation(len(y))
    one, two = metrics.summary(p, y), metrics.summary(p[mixed], y[mixed])
    assert one.to_dict() == pytest.approx(two.to_dict(), rel=1e-12)


def test_rejection_takes_the_most_uncertain() -> None:
    p, y = np.tile([0.6, 0.4], (10, 1)), np.array([1, 0, 1] + [0] * 7)
    doubt = np.array([9.0, 1.0] + [2.0] * 8)
    found = metrics.errors_after_rejection(p, y, doubt, share=0.1)
    assert (found.rejected, found.kept, found.errors, found.errors_left) == (1, 9, 2, 1.0)
    assert found.error_rate_left == pytest.approx(1 / 9)


def test_rejection_among_ties_is_an_expectation() -> None:
    p, y = np.tile([0.6, 0.4], (10, 1)), np.array([1, 1] + [0] * 8)
    assert metrics.errors_after_rejection(p, y, share=0.5).errors_left == pytest.approx(1.0)


def test_nothing_rejected_leaves_every_error(pair: Pair) -> None:
    found = metrics.errors_after_rejection(*pair, share=0.0)
    assert found.errors_left == pytest.approx(found.errors)
    assert found.rejected == 0


def test_summary_is_its_parts(pair: Pair) -> None:
    found = metrics.summary(*pair).to_dict()
    assert found["accuracy"] == metrics.accuracy(*pair)
    assert found["nll"] == metrics.negative_log_likelihood(*pair)
    assert found["brier"] == metrics.brier_score(*pair)
    assert found["ece"] == metrics.expected_calibration_error(*pair)
    assert found["aurc"] == metrics.risk_coverage(*pair).area
    assert found["errors"] == round((1 - metrics.accuracy(*pair)) * len(pair[1]))


def test_summary_ranks_by_the_uncertainty_given(pair: Pair) -> None:
    p, y = pair
    oracle = (p.argmax(1) != y).astype(float)
    assert metrics.summary(p, y, oracle).aurc < metrics.summary(p, y).aurc


def test_half_precision_is_normalised() -> None:
    logits = torch.randn(64, 7, generator=torch.Generator().manual_seed(0))
    y = torch.randint(7, (64,), generator=torch.Generator().manual_seed(1))
    exact = metrics.negative_log_likelihood(logits.double().softmax(1), y)
    rough = metrics.negative_log_likelihood(logits.softmax(1).bfloat16(), y)
    assert rough == pytest.approx(exact, abs=2e-3)


def test_a_probability_of_zero_is_very_bad_and_finite() -> None:
    found = metrics.negative_log_likelihood(np.array([[1.0, 0.0]]), np.array([1]))
    assert found == pytest.approx(87.34, abs=0.01)


def test_bootstrap_of_equal_models_is_zero(pair: Pair) -> None:
    p, y = pair
    found = metrics.paired_bootstrap(metrics.brier_score, p, p, y, resamples=20)
    assert (found.estimate, found.low, found.high) == (0.0, 0.0, 0.0)


def test_bootstrap_agrees_with_the_normal_interval() -> None:
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet([1, 1], size=1000), rng.dirichlet([2, 2], size=1000)
    y = rng.integers(0, 2, 1000)
    rows = np.arange(1000)
    difference = -np.log(q[rows, y]) + np.log(p[rows, y])
    half = 1.96 * difference.std() / np.sqrt(1000)
    found = metrics.paired_bootstrap(metrics.negative_log_likelihood, p, q, y)
    assert found.estimate == pytest.approx(difference.mean(), rel=1e-9)
    # A quantile of 2000 draws is off by about 0.06 standard errors.
    assert found.low == pytest.approx(difference.mean() - half, abs=0.12 * half)
    assert found.high == pytest.approx(difference.mean() + half, abs=0.12 * half)


def test_bootstrap_leaves_the_global_stream_alone(pair: Pair) -> None:
    before = torch.get_rng_state()
    p, y = pair
    one = metrics.paired_bootstrap(metrics.accuracy, p, p[:, ::-1], y, resamples=10)
    two = metrics.paired_bootstrap(metrics.accuracy, p, p[:, ::-1], y, resamples=10)
    assert one == two
    assert torch.equal(before, torch.get_rng_state())


GOOD = np.array([[0.5, 0.5], [0.2, 0.8]])


@pytest.mark.parametrize(
    ("probabilities", "labels", "error", "says"),
    [
        (GOOD[:0], np.array([]), DataError, "no row"),
        (GOOD[:, 0], np.array([0, 1]), DataError, r"\(N, C\)"),
        (GOOD * 3, np.array([0, 1]), DataError, "softmax"),
        (GOOD - [0.6, -0.6], np.array([0, 1]), DataError, "0 or more"),
        (GOOD * np.nan, np.array([0, 1]), NonFiniteError, "2 of 2 rows"),
        (GOOD, np.array([[0], [1]]), DataError, r"shape \(2, 1\)"),
        (GOOD, np.array([0, 2]), DataError, "first 2 in row 1"),
        (GOOD, np.array([-100, 1]), DataError, "first -100 in row 0"),
        (GOOD, np.array([0.5, 1]), DataError, "first 0.5 in row 0"),
    ],
)
def test_wrong_arrays_are_named(
    probabilities: NDArray[np.float64],
    labels: NDArray[np.int64],
    error: type[Exception],
    says: str,
) -> None:
    with pytest.raises(error, match=says):
        metrics.summary(probabilities, labels)


def test_wrong_settings_are_named() -> None:
    y = np.array([0, 1])
    with pytest.raises(ConfigError, match="share"):
        metrics.summary(GOOD, y, share=1.0)
    with pytest.raises(ConfigError, match="rejects all"):
        metrics.summary(GOOD, y, share=0.9)
    with pytest.raises(ConfigError, match="bins"):
        metrics.reliability(GOOD, y, bins=0)
    with pytest.raises(ConfigError, match="level"):
        metrics.reliability(GOOD, y, level=95)
    with pytest.raises(DataError, match="uncertainty"):
        metrics.risk_coverage(GOOD, y, np.zeros(3))
    with pytest.raises(NonFiniteError, match="NaN"):
        metrics.risk_coverage(GOOD, y, np.full(2, np.nan))
    with pytest.raises(DataError, match="must be equal"):
        metrics.paired_bootstrap(metrics.accuracy, GOOD, np.full((2, 4), 0.25), y)
