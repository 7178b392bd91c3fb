"""Prediction sets: the scores against loops, the quantile against counting, coverage by draws."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import beta

from posthoc_bhpeft.audit.decisions import conformal
from posthoc_bhpeft.audit.decisions.conformal import (
    check_sets,
    conformal_quantile,
    conformal_rank,
    conformal_sets,
    coverage_range,
    rows_for_sets,
)
from posthoc_bhpeft.audit.predictions import Predictions
from posthoc_bhpeft.errors import ConfigError, DataError
from posthoc_bhpeft.sets import APS, LAC, RAPS, SetRule

METHODS = [LAC(), APS(), RAPS(0.1, 1)]


def rows_of(n: int, seed: int, classes: int = 4, sharpness: float = 1.5) -> Predictions:
    """Overconfident predictions: the labels come from a softer distribution."""
    rng = np.random.default_rng(seed)
    logits = sharpness * rng.standard_normal((n, classes)) + 0.7 * np.arange(classes)
    soft = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    hard = np.exp(2 * logits) / np.exp(2 * logits).sum(1, keepdims=True)
    labels = (rng.random((n, 1)) > soft.cumsum(1)).sum(1).clip(0, classes - 1)
    return Predictions(hard, labels)


def before(p: list[float], y: int, penalty: float, free: int) -> float:
    """The definition, in words: classes that rank before y, by probability and then index."""
    ahead = [j for j in range(len(p)) if p[j] > p[y] or (p[j] == p[y] and j < y)]
    return sum(p[j] for j in ahead) + penalty * max(0, len(ahead) + 1 - free)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_strangeness_is_its_definition(method: Any) -> None:
    p = np.vstack([rows_of(50, 0).probabilities, [[0.25] * 4], [[0.1, 0.4, 0.4, 0.1]]])
    found = method.strangeness(torch.tensor(p)).numpy()
    penalty, free = (0.1, 1) if isinstance(method, RAPS) else (0.0, 1)
    expected = (
        1 - p
        if isinstance(method, LAC)
        else [[before(row, y, penalty, free) for y in range(4)] for row in p.tolist()]
    )
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize(("rows", "alpha"), [(99, 0.1), (19, 0.05), (9, 0.3), (57, 0.1), (8, 0.1)])
def test_the_rank_is_the_least_that_is_enough(rows: int, alpha: float) -> None:
    rank = conformal_rank(rows, alpha)
    assert rank / (rows + 1) >= 1 - alpha - 1e-12
    assert (rank - 1) / (rows + 1) < 1 - alpha - 1e-12


def test_the_quantile_is_an_order_statistic() -> None:
    values = np.random.default_rng(0).permutation(99.0 + np.arange(99))
    assert conformal_quantile(values, 0.1) == 99 + 89
    assert conformal_quantile(values[:8], 0.1) == math.inf
    assert rows_for_sets(0.1) == 9
    assert math.isfinite(conformal_quantile(values[:9], 0.1))
    assert rows_for_sets(0.05) == 19


DRAWS, TEST = 300, 200


def coverages(
    method: Any, rows: int = 30, alpha: float = 0.2, per_class: bool = False
) -> np.ndarray[Any, Any]:
    """Coverage of each class `(DRAWS, C)` and of all, over draws of the labelled rows."""
    found = []
    test = rows_of(DRAWS * TEST, 1)
    for draw in range(DRAWS):
        sets = conformal_sets(rows_of(rows, 100 + draw), alpha, method=method, per_class=per_class)
        part = test.take(range(draw * TEST, (draw + 1) * TEST))
        checked = check_sets(sets, part)
        found.append([checked.coverage.estimate, *(c.estimate for c in checked.per_class)])
    return np.array(found)


def margin(values: np.ndarray[Any, Any]) -> float:
    """Four standard errors of the mean."""
    return float(4 * np.nanstd(values) / math.sqrt(len(values)))


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_the_label_is_inside_as_often_as_promised(method: Any) -> None:
    found = coverages(method)[:, 0]
    assert found.mean() >= 0.8 - margin(found)
    if isinstance(method, LAC):
        # No two strangenesses are equal, so the mean is (k / (n + 1)), known exactly.
        assert found.mean() == pytest.approx(conformal_rank(30, 0.2) / 31, abs=margin(found))


def test_classes_alone_get_the_promise_only_if_asked() -> None:
    together, apart = coverages(LAC(), 120), coverages(LAC(), 120, per_class=True)
    rare = 1
    assert np.nanmean(together[:, rare]) < 0.8 - margin(together[:, rare])
    for c in range(1, 5):
        assert np.nanmean(apart[:, c]) >= 0.8 - margin(apart[:, c])


@pytest.mark.parametrize(
    "wrong",
    [
        lambda strange, alpha: float(np.sort(strange)[conformal_rank(len(strange), alpha) - 3]),
        lambda strange, alpha: float(np.sort(strange)[conformal_rank(len(strange), alpha) - 2]),
    ],
    ids=["two off", "one off"],
)
def test_the_check_sees_a_quantile_that_is_off(
    wrong: Callable[..., float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conformal, "conformal_quantile", wrong)
    found = coverages(LAC())[:, 0]
    # One off costs 1 / 31: 0.774 where 0.8 was promised.
    assert found.mean() < 0.8 - margin(found) / 4


def test_sizes_are_counted() -> None:
    rows = rows_of(500, 3)
    for method in METHODS:
        found = conformal_sets(rows, 0.1, method=method)
        inside = method.strangeness(torch.tensor(rows.probabilities)) <= found.rule.thresholds[0]
        sizes = inside.sum(1).tolist()
        assert found.sizes.mean == pytest.approx(sum(sizes) / 500)
        assert found.sizes.counts == tuple(sizes.count(k) for k in range(5))
        assert found.sizes.single == sizes.count(1) / 500
        assert found.sizes.empty == sizes.count(0) / 500
        assert (found.rows, found.alpha, found.feasible) == (500, 0.1, True)


def test_adaptive_sets_are_never_empty() -> None:
    rows = rows_of(300, 4, sharpness=6.0)
    assert conformal_sets(rows, 0.6, method=APS()).sizes.empty == 0
    assert conformal_sets(rows, 0.6, method=RAPS()).sizes.empty == 0
    assert conformal_sets(rows, 0.6, method=LAC()).sizes.empty > 0


def test_a_penalty_makes_large_sets_smaller() -> None:
    rows = rows_of(2000, 5, classes=30)
    plain = conformal_sets(rows, 0.1, method=APS()).sizes.counts
    penalised = conformal_sets(rows, 0.1, method=RAPS(0.2, 3)).sizes.counts
    assert max(np.flatnonzero(penalised)) < max(np.flatnonzero(plain))


def test_how_much_the_coverage_varies() -> None:
    found = coverage_range(99, 0.1)
    assert found.low == pytest.approx(beta.ppf(0.025, 90, 10))
    assert found.estimate == pytest.approx(0.9, abs=0.005)
    seen = coverages(LAC(), 99, 0.1)[:, 0]
    # The 200 test rows add their own chance, so a little more than 5 % fall outside.
    outside = np.mean((seen < found.low) | (seen > found.high))
    assert 0.02 < outside < 0.25


def test_too_few_rows_say_so() -> None:
    found = conformal_sets(rows_of(8, 6), 0.1)
    assert not found.feasible
    assert "every set has every class: 8 rows are too few, at least 9 are needed" in found.guarantee
    assert found.sizes.mean == 4
    assert found.coverage.low == 1.0


def test_classes_with_too_few_rows_are_named() -> None:
    rows = rows_of(60, 7)
    few = Predictions(rows.probabilities, np.where(rows.labels == 0, 1, rows.labels))
    found = conformal_sets(few, 0.1, per_class=True)
    assert not found.feasible
    assert "Of 0 there are too few rows" in found.guarantee
    assert found.rule.thresholds[0] == math.inf
    assert [n for _, n, _ in found.per_class] == [int((few.labels == c).sum()) for c in range(4)]
    assert math.isnan(check_sets(found, few).per_class[0].estimate)


def test_what_makes_no_sets() -> None:
    rows = rows_of(50, 8)
    with pytest.raises(DataError, match="no labels"):
        conformal_sets(Predictions(rows.probabilities), 0.1)
    with pytest.raises(ConfigError, match="alpha is 10"):
        conformal_sets(rows, 10)
    with pytest.raises(ConfigError, match="penalty must be 0 or more"):
        RAPS(penalty=-1)
    with pytest.raises(ConfigError, match="at least 1"):
        RAPS(free=0)
    rule = SetRule(LAC(), (0.5, 0.5, 0.5), "")
    with pytest.raises(ConfigError, match=r"made for 3 classes.*have 4"):
        rule.sets(torch.tensor(rows.probabilities))


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_ties_in_single_precision_are_inside_like_the_row_on_the_threshold(method: Any) -> None:
    """As softmax().numpy() gives them: thresholds are found and applied in float64."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        few = torch.tensor(rng.normal(size=(12, 4)), dtype=torch.float32).softmax(1).numpy()
        rows = Predictions(few[rng.integers(12, size=300)], rng.integers(4, size=300))
        sets = conformal_sets(rows, 0.05, method=method)
        assert check_sets(sets, rows).coverage.estimate >= 0.95
