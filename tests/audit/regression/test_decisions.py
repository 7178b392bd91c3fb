from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from posthoc_bhpeft.audit.metrics import Interval
from posthoc_bhpeft.audit.regression import at_most_off, review_least_sure
from posthoc_bhpeft.audit.regression.decisions import rmse_of
from posthoc_bhpeft.errors import ConfigError
from tests.audit.regression.made import honest, point


def test_review_by_hand() -> None:
    rows = honest(300)
    found = review_least_sure(rows, 0.10, tolerance=1.0)
    ordered = np.sort(rows.deviation)
    k = next(k for k in range(1, 301) if stats.binom.cdf(k - 1, 300, 0.9) >= 0.95)
    assert found.threshold == ordered[k - 1]
    kept = rows.deviation <= found.threshold
    assert found.reviewed.estimate == pytest.approx(1 - kept.mean())
    assert found.rmse.estimate == pytest.approx(np.sqrt((rows.error[kept] ** 2).mean()))
    assert found.rmse_before == pytest.approx(np.sqrt((rows.error**2).mean()))
    assert found.off is not None
    assert found.off.estimate == pytest.approx((np.abs(rows.error[kept]) > 1.0).mean())
    assert "at most 10 % of new rows" in found.guarantee
    assert found.feasible


def test_the_share_reviewed_is_kept_to_on_new_rows() -> None:
    """Not more than 10 % of 20,000 new rows in at least 95 % of the draws."""
    many = honest(20000, seed=99).deviation
    broken = sum(
        (many > review_least_sure(honest(200, seed=s), 0.10, resamples=1).threshold).mean() > 0.10
        for s in range(200)
    )
    assert broken <= 200 * 0.05 + 3 * math.sqrt(200 * 0.05 * 0.95)


def test_the_error_promised_is_kept_to_on_new_rows() -> None:
    """Answered rows of a large sample are off by more than 1 in at most 20 %, nearly always."""
    many = honest(20000, seed=99)
    off, broken = np.abs(many.error) > 1.0, 0
    for seed in range(100):
        found = at_most_off(honest(300, seed=seed), 1.0, 0.20, resamples=1)
        kept = many.deviation <= found.threshold
        broken += bool(kept.any() and off[kept].mean() > 0.20)
    assert broken <= 11


def test_small_errors_need_no_review() -> None:
    rows = honest(300)
    found = at_most_off(rows, 100.0)
    assert found.threshold == math.inf
    assert (found.reviewed.estimate, found.off) == (0.0, Interval(0.0, 0.0, found.off.high))  # type: ignore[union-attr]
    assert found.rmse.estimate == pytest.approx(found.rmse_before)


def test_a_point_prediction_is_answered_as_a_whole_or_not_at_all() -> None:
    rows = point(honest(300))
    assert at_most_off(rows, 100.0).threshold == math.inf
    none = at_most_off(rows, 0.01)
    assert none.threshold == -math.inf
    assert not none.feasible
    assert math.isnan(none.rmse.estimate)
    assert none.reviewed.estimate == 1.0
    assert none.guarantee.startswith("Wrong is what is off by more than 0.01.")


def test_too_few_rows_to_promise_a_share() -> None:
    found = review_least_sure(honest(20), 0.10)
    assert not found.feasible
    assert found.threshold == math.inf
    assert found.rows_needed == 29
    assert "20 rows are too few" in found.guarantee


def test_without_targets_only_the_share_is_known() -> None:
    found = review_least_sure(replace(honest(200), targets=None), tolerance=1.0)
    assert found.feasible
    assert math.isnan(found.rmse.estimate)
    assert found.off is None


def test_the_interval_of_the_error_left() -> None:
    rows = honest(120)
    kept = rows.deviation < 1.0
    squared = rows.error[kept] ** 2
    rng = np.random.default_rng(3)
    drawn = [np.sqrt(squared[rng.integers(len(squared), size=len(squared))].mean())
             for _ in range(4000)]  # fmt: skip
    found = rmse_of(rows, kept, resamples=4000)
    np.testing.assert_allclose([found.low, found.high], np.quantile(drawn, [0.025, 0.975]), 0.03)


def test_settings_out_of_range() -> None:
    with pytest.raises(ConfigError, match=r"share is 1\.5"):
        review_least_sure(honest(50), 1.5)
    with pytest.raises(ConfigError, match="rate is 0"):
        at_most_off(honest(50), 1.0, 0)
    for tolerance in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="largest error that does no harm"):
            at_most_off(honest(50), tolerance)
