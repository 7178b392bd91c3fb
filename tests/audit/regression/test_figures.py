from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import mean_absolute_error, r2_score

from posthoc_bhpeft.audit.metrics import gaussian
from posthoc_bhpeft.audit.metrics.catalogue import GAUSSIAN
from posthoc_bhpeft.audit.metrics.gaussian import DrawnGaussians, Gaussians
from posthoc_bhpeft.audit.regression import REGRESSION, RealPredictions
from posthoc_bhpeft.audit.regression.figures import (
    HEADLINE,
    check_same_rows,
    differences,
    draws_of,
    intervals,
)
from posthoc_bhpeft.errors import ConfigError, DataError
from tests.audit.drawn import weights_and_copies
from tests.audit.regression.made import honest, point

ADDED = REGRESSION[len(GAUSSIAN) :]


def taken(found: RealPredictions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return found.mean, found.variance, found.known_targets


def test_error_figures_are_those_of_sklearn() -> None:
    found = honest(60)
    mean, _, targets = taken(found)
    expected = mean_absolute_error(targets, mean)
    assert gaussian.mean_absolute_error(*taken(found)) == pytest.approx(expected)
    assert gaussian.mean_error(*taken(found)) == pytest.approx((mean - targets).mean())
    assert gaussian.explained_variance(*taken(found)) == pytest.approx(r2_score(targets, mean))


def test_r2_far_from_zero_and_of_equal_targets() -> None:
    mean, variance, targets = taken(honest(60))
    far = gaussian.explained_variance(mean + 1e8, variance, targets + 1e8)
    assert far == pytest.approx(r2_score(targets, mean), rel=1e-6)
    assert np.isnan(gaussian.explained_variance(mean, variance, np.full(60, 0.1)))


@pytest.mark.parametrize("share", [0.1, 0.25])
def test_review_by_hand(share: float) -> None:
    mean, variance, targets = taken(honest(40))
    order = np.argsort(-variance)
    gone, left = order[: round(40 * share)], order[round(40 * share) :]
    squared = (targets - mean) ** 2
    assert gaussian.rmse_after_review(mean, variance, targets, share) == pytest.approx(
        np.sqrt(squared[left].mean())
    )
    assert gaussian.squared_error_removed(mean, variance, targets, share) == pytest.approx(
        squared[gone].sum() / squared.sum()
    )


def test_a_deviation_that_ranks_nothing_removes_as_much_as_chance() -> None:
    rows = taken(point(honest(37)))
    assert gaussian.squared_error_removed(*rows) == pytest.approx(0.10)
    assert gaussian.rmse_after_review(*rows) == pytest.approx(
        gaussian.root_mean_squared_error(*rows)
    )


def test_ties_are_taken_in_equal_parts() -> None:
    """Half of a group of two equal rows: the mean over both orders of them."""
    mean, targets = np.zeros(4), np.array([1.0, 2.0, 3.0, 4.0])
    variance = np.array([1.0, 2.0, 2.0, 0.5])
    expected = (4.0 + 9.0) / 2 / 30.0
    found = gaussian.squared_error_removed(mean, variance, targets, 0.25)
    assert found == pytest.approx(expected)


def test_no_error_at_all_has_nothing_to_remove() -> None:
    zeros = np.zeros(20)
    assert np.isnan(gaussian.squared_error_removed(zeros, zeros + 1, zeros))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_share_is_inside(share: float) -> None:
    with pytest.raises(ConfigError, match="must lie between 0 and 1"):
        gaussian.rmse_after_review(*taken(honest(20)), share)
    with pytest.raises(ConfigError, match="must lie between 0 and 1"):
        gaussian.squared_error_removed(*taken(honest(20)), share)


@pytest.mark.parametrize("metric", ADDED, ids=lambda m: m.name)
@pytest.mark.parametrize("digits", [1, 12])
def test_a_weight_is_a_copy(metric, digits: int) -> None:
    mean, variance, targets = taken(honest(60))
    rows = Gaussians.checked(mean, variance.round(digits), targets)
    weights, copies = weights_and_copies(60, 5)
    expected = [
        metric.values(
            DrawnGaussians.whole(Gaussians(rows.mean[i], rows.deviation[i], rows.targets[i]))
        )[0]
        for i in copies
    ]
    np.testing.assert_allclose(metric.values(DrawnGaussians(rows, weights)), expected, rtol=1e-9)


def test_the_headline_is_in_the_catalogue() -> None:
    names = [metric.name for metric in REGRESSION]
    assert set(HEADLINE) <= set(names)
    assert len(names) == len(set(names))


def test_intervals_hold_their_estimates_and_widen_with_the_level() -> None:
    draws = draws_of(honest(150), 200)
    narrow, wide = intervals(draws, 0.5), intervals(draws, 0.99)
    for name, figure in narrow.items():
        assert wide[name].low <= figure.low <= figure.estimate <= figure.high <= wide[name].high
    assert narrow["rmse"].low < narrow["rmse"].high


def test_intervals_of_the_error_are_those_of_a_plain_bootstrap() -> None:
    found = honest(80)
    rng = np.random.default_rng(5)
    drawn = [np.abs(found.error[rng.integers(80, size=80)]).mean() for _ in range(4000)]
    mae = intervals(draws_of(found, 4000))["mae"]
    expected = np.quantile(drawn, [0.025, 0.975])
    np.testing.assert_allclose([mae.low, mae.high], expected, rtol=0.02)


def test_differences_are_paired() -> None:
    """Means that are the same cancel whatever the rows; what the doubt adds does not."""
    ours = honest(300)
    mine, theirs = draws_of(ours, 200), draws_of(point(ours), 200)
    found = differences(mine, theirs)
    for name in ("rmse", "mae", "bias", "r2"):
        assert (found[name].low, found[name].estimate, found[name].high) == (0.0, 0.0, 0.0)
    assert found["gaussian_nll"].high < 0
    first, second = intervals(mine), intervals(theirs)
    for name, one in found.items():
        expected = first[name].estimate - second[name].estimate
        assert one.estimate == pytest.approx(expected, abs=1e-12)


def test_equal_seeds_draw_equal_rows() -> None:
    ours = honest(50)
    one, two, other = (draws_of(ours, 40, seed)["rmse"].error for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, two)
    assert (one != other).any()


def test_rivals_are_about_the_same_rows() -> None:
    ours = honest(20)
    with pytest.raises(DataError, match="20 rows and MAP 19"):
        check_same_rows(ours, ours.take(range(19)), "MAP")
    with pytest.raises(DataError, match=r"20 of 20 targets.*MAP differ"):
        check_same_rows(ours, ours.take(range(19, -1, -1)), "MAP")
    check_same_rows(ours, point(ours), "MAP")
