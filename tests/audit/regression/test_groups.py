from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from posthoc_bhpeft.audit.regression import RealPredictions, groups
from posthoc_bhpeft.audit.regression.groups import OF_THE_TARGET, PREDICTED
from posthoc_bhpeft.audit.slices import LENGTH
from posthoc_bhpeft.errors import ConfigError, DataError
from tests.audit.regression.made import honest

ROWS = 300


def sites() -> np.ndarray:
    return np.where(np.arange(ROWS) % 3 == 0, "small", "large")


def shifted(by: float, times: float = 1.0) -> RealPredictions:
    """Targets of one site moved, and further off."""
    rows = honest(ROWS, columns={"site": tuple(sites())})
    small = sites() == "small"
    targets = np.where(small, rows.mean - times * rows.error - by, rows.known_targets)
    return replace(rows, targets=targets)


def test_figures_of_a_group_by_hand() -> None:
    rows = shifted(0.3)
    (one,) = [g for g in groups(rows, ["site"]) if g.value == "small"]
    small = sites() == "small"
    error = rows.error[small]
    assert one.rows == 100
    assert one.rmse == pytest.approx(np.sqrt((error**2).mean()))
    assert one.others_rmse == pytest.approx(np.sqrt((rows.error[~small] ** 2).mean()))
    interval = stats.ttest_1samp(error, 0.0).confidence_interval(0.95)
    assert (one.bias.low, one.bias.high) == pytest.approx((interval.low, interval.high))
    assert one.bias.estimate == pytest.approx(error.mean())
    held = int((np.abs(error) <= stats.norm.ppf(0.95) * rows.deviation[small]).sum())
    exact = stats.binomtest(held, 100).proportion_ci(0.95, method="exact")
    assert (one.coverage.low, one.coverage.high) == pytest.approx((exact.low, exact.high))


def test_p_values_are_those_of_scipy_adjusted_together() -> None:
    rows = shifted(0.3)
    found = {one.value: one for one in groups(rows, ["site"])}
    raw = {}
    for name in ("small", "large"):
        inside = sites() == name
        held = np.abs(rows.error[inside]) <= stats.norm.ppf(0.95) * rows.deviation[inside]
        sizes = np.abs(rows.error)
        raw[name, "p_error"] = stats.mannwhitneyu(sizes[inside], sizes[~inside]).pvalue
        raw[name, "p_bias"] = stats.ttest_1samp(rows.error[inside], 0.0).pvalue
        raw[name, "p_coverage"] = stats.binomtest(int(held.sum()), len(held), 0.9).pvalue
    holm, smallest = 0.0, sorted(raw, key=raw.__getitem__)
    for k, key in enumerate(smallest):
        holm = max(holm, min(1.0, (len(raw) - k) * raw[key]))
        assert getattr(found[key[0]], key[1]) == pytest.approx(holm)


@pytest.mark.parametrize(
    ("by", "times", "said"),
    [
        (1.0, 1.0, "too high by 0.8"),
        (-1.0, 1.0, "too low by"),
        (0.0, 2.5, "badly served: RMSE"),
        (0.0, 2.5, "over-confident: "),
        (0.0, 0.2, "under-confident: 100"),
    ],
)
def test_findings(by: float, times: float, said: str) -> None:
    found = {one.value: one.finding for one in groups(shifted(by, times), ["site"])}
    assert said in found["small"]
    assert said not in found["large"]


def test_honest_predictions_have_no_finding() -> None:
    rows = honest(ROWS, columns={"site": tuple(sites())}, texts=("a b",) * 100 + ("c",) * 200)
    found = groups(rows)
    assert {one.column for one in found} == {"site", PREDICTED, LENGTH}
    assert not [one.finding for one in found if one.finding]


def test_false_findings_are_as_rare_as_promised() -> None:
    said = 0
    for seed in range(60):
        rows = honest(120, seed=seed, columns={"site": ("a", "b", "c") * 40})
        said += any(one.finding for one in groups(rows, ["site"]))
    assert said <= 8  # 3 and three standard errors


def test_a_column_made_from_the_target_is_not_tested() -> None:
    rows = honest(ROWS)
    rounded = np.round(rows.known_targets / 4)
    stars = replace(rows, targets=rounded, columns={"stars": tuple(rounded)})
    for one in groups(stars, ["stars"]):
        assert one.note == OF_THE_TARGET
        assert (one.p_error, one.p_bias, one.p_coverage, one.finding) == (None, None, None, "")


def test_a_group_without_any_error() -> None:
    rows = honest(60, columns={"site": ("a", "b") * 30})
    targets = np.where(np.arange(60) % 2 == 0, rows.mean, rows.known_targets)
    found = {one.value: one for one in groups(replace(rows, targets=targets), ["site"])}
    assert found["a"].rmse == 0.0
    assert found["a"].p_bias == 1.0


def test_what_groups_need() -> None:
    with pytest.raises(DataError, match=r"no column 'shop'.*'predicted value'"):
        groups(honest(60), ["shop"])
    with pytest.raises(ConfigError, match="min_rows is 1"):
        groups(honest(60), min_rows=1)
    with pytest.raises(ConfigError, match="level is 2"):
        groups(honest(60), level=2)
    with pytest.raises(DataError, match="have no targets"):
        groups(replace(honest(60), targets=None))
