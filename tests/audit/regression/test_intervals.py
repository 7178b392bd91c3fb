"""Coverage of Gaussian intervals, and conformal ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from posthoc_bhpeft.audit.regression import (
    RealPredictions,
    check_intervals,
    conformal_intervals,
    coverage_at,
)
from posthoc_bhpeft.errors import ConfigError, DataError
from tests.audit.regression.made import honest


def test_coverage_by_hand() -> None:
    found = honest(200)
    for one in coverage_at(found, (0.5, 0.9)):
        low, high = stats.norm.interval(one.level, found.mean, found.deviation)
        held = int(((low <= found.known_targets) & (found.known_targets <= high)).sum())
        exact = stats.binomtest(held, 200).proportion_ci(0.95, method="exact")
        assert one.inside.estimate == held / 200
        assert (one.inside.low, one.inside.high) == pytest.approx((exact.low, exact.high))
        assert one.width == pytest.approx((high - low).mean())


@pytest.mark.parametrize(("spread", "finding"), [(1.0, ""), (2.0, "too narrow"), (0.4, "too wide")])
def test_what_is_said_about_intervals(spread: float, finding: str) -> None:
    assert {one.finding for one in coverage_at(honest(500, spread=spread))} == {finding}


def test_a_level_is_inside() -> None:
    with pytest.raises(ConfigError, match=r"level is 1.0"):
        coverage_at(honest(20), (1.0,))


def test_the_factor_is_an_order_statistic() -> None:
    found = honest(99)
    z = np.sort(np.abs(found.error) / found.deviation)
    made = conformal_intervals(found, 0.10)
    assert made.factor == pytest.approx(z[89])  # ceil(100 * 0.9) = 90th smallest
    assert made.gaussian == pytest.approx(stats.norm.ppf(0.95))
    assert made.stretch == pytest.approx(made.factor / stats.norm.ppf(0.95))
    low, high = made.limits(found)
    np.testing.assert_allclose(high - low, 2 * z[89] * found.deviation)
    np.testing.assert_allclose((high + low) / 2, found.mean)
    assert made.width == pytest.approx((high - low).mean())
    assert made.coverage.estimate == pytest.approx(stats.beta.ppf(0.5, 90, 10))
    assert "90 %" in made.guarantee
    assert "99 rows" in made.guarantee


@pytest.mark.parametrize("spread", [0.5, 3.0])
def test_the_promise_holds_however_wrong_the_model(spread: float) -> None:
    """Over draws of the rows the coverage is (n + 1 - k) / (n + 1) less than 1; here 45 / 50."""
    rng = np.random.default_rng(0)
    held = []
    for _ in range(800):
        deviation = rng.gamma(2.0, size=50)
        targets = spread * deviation * rng.standard_t(3, size=50)
        rows = RealPredictions(np.zeros(50), deviation**2, np.zeros(50), targets)
        made = conformal_intervals(rows.take(range(49)), 0.10)
        low, high = made.limits(rows.take([49]))
        held.append(low[0] <= targets[49] <= high[0])
    error = math.sqrt(0.9 * 0.1 / 800)
    assert np.mean(held) == pytest.approx(0.9, abs=4 * error)


def test_too_few_rows() -> None:
    made = conformal_intervals(honest(8), 0.10)
    assert not made.feasible
    assert made.factor == math.inf
    assert made.width == math.inf
    assert "8 rows are too few, at least 9" in made.guarantee
    assert conformal_intervals(honest(9), 0.10).feasible


def test_intervals_on_other_rows() -> None:
    made = conformal_intervals(honest(300, spread=2.0), 0.10)
    others = honest(400, seed=1, spread=2.0)
    low, high = made.limits(others)
    inside = (low <= others.known_targets) & (others.known_targets <= high)
    found = check_intervals(made, others)
    assert found.coverage.estimate == inside.mean()
    assert found.rows == 400
    assert found.coverage.low < 0.9 < found.coverage.high
    assert found.width == pytest.approx((high - low).mean())


def test_what_conformal_intervals_need() -> None:
    with pytest.raises(ConfigError, match=r"alpha is 1\.5"):
        conformal_intervals(honest(20), 1.5)
    bare = RealPredictions(np.ones(20), np.ones(20), np.ones(20))
    with pytest.raises(DataError, match="have no targets"):
        conformal_intervals(bare)
