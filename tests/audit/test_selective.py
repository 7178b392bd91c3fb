from __future__ import annotations

import numpy as np
import pytest

from posthoc_bhpeft.audit.metrics import selective
from posthoc_bhpeft.audit.metrics.rows import Rows
from posthoc_bhpeft.audit.metrics.shares import share_interval
from posthoc_bhpeft.errors import ConfigError
from tests.audit.drawn import Pair, pairs


@pytest.fixture(params=pairs(), ids=str)
def pair(request: pytest.FixtureRequest) -> Pair:
    return pairs()[request.param]


def test_augrc_is_a_sum_over_pairs_of_rows(pair: Pair) -> None:
    """Traub et al. (2024): the mean, over pairs, of an error that is put before the other row."""
    p, y = pair
    doubt, wrong = 1 - p.max(1), p.argmax(1) != y
    before = (doubt[:, None] < doubt[None]) + 0.5 * (doubt[:, None] == doubt[None])
    expected = before[wrong].sum() / len(y) ** 2
    assert selective.risk_coverage(p, y).generalized_area == pytest.approx(expected, abs=1e-12)


def test_augrc_is_what_the_paper_makes_of_auroc(pair: Pair) -> None:
    from sklearn.metrics import roc_auc_score

    p, y = pair
    wrong = p.argmax(1) != y
    rate = wrong.mean()
    if rate in (0.0, 1.0):
        expected = rate**2 / 2
    else:
        found = roc_auc_score(wrong, 1 - p.max(1))
        expected = (1 - found) * rate * (1 - rate) + rate**2 / 2
    assert selective.risk_coverage(p, y).generalized_area == pytest.approx(expected, abs=1e-12)


def test_weighted_areas_are_those_of_the_curve(pair: Pair) -> None:
    curve, whole = selective.risk_coverage(*pair), Rows.checked(*pair).whole
    assert selective.aurc_of(whole)[0] == pytest.approx(curve.area, rel=1e-10, abs=1e-15)
    assert selective.augrc_of(whole)[0] == pytest.approx(curve.generalized_area, abs=1e-12)


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9, 0.95, 1.0])
def test_accuracy_at_a_coverage_by_sorting(coverage: float) -> None:
    p, y = pairs()["five, over-confident"]
    kept = np.argsort(1 - p.max(1), kind="stable")[: round(coverage * len(y))]
    expected = (p[kept].argmax(1) == y[kept]).mean()
    assert selective.accuracy_at_coverage(p, y, coverage) == pytest.approx(expected)
    found = selective.accuracy_at_of(Rows.checked(p, y).whole, coverage)
    assert found[0] == pytest.approx(expected)


def test_errors_removed_by_hand() -> None:
    p, y = np.tile([0.6, 0.4], (10, 1)), np.array([1, 0, 1] + [0] * 7)
    doubt = np.array([9.0, 1.0] + [2.0] * 8)
    found = selective.errors_after_rejection(p, y, doubt, share=0.1)
    assert found.errors_removed == 0.5
    assert selective.errors_removed_of(Rows.checked(p, y, doubt).whole)[0] == 0.5


def test_doubt_that_knows_nothing_removes_its_share() -> None:
    p, y = np.tile([0.6, 0.4], (100, 1)), (np.arange(100) < 30).astype(int)
    assert selective.errors_after_rejection(p, y).errors_removed == pytest.approx(0.1)


def test_without_an_error_there_is_no_share_of_errors() -> None:
    p, y = np.tile([0.6, 0.4], (10, 1)), np.zeros(10)
    assert np.isnan(selective.errors_after_rejection(p, y).errors_removed)
    assert np.isnan(selective.errors_removed_of(Rows.checked(p, y).whole)[0])


@pytest.mark.parametrize("coverage", [0.0, -0.1, 1.1])
def test_a_coverage_out_of_range_is_refused(coverage: float) -> None:
    with pytest.raises(ConfigError, match="share"):
        selective.accuracy_at_coverage(*pairs()["two classes"], coverage)


def rejected(count: int, errors: int, rows: int = 300) -> Rows:
    """So many errors, `count` of them among the least certain tenth."""
    wrong = np.r_[np.arange(rows // 10) < count, np.arange(rows - rows // 10) < errors - count]
    return Rows.checked(np.tile([0.6, 0.4], (rows, 1)), wrong.astype(int), -np.arange(rows))


@pytest.mark.parametrize(("count", "errors"), [(0, 1), (0, 3), (3, 3), (9, 60), (20, 29)])
def test_few_errors_rejected_or_kept_have_an_exact_interval(count: int, errors: int) -> None:
    found = selective.errors_removed_interval(rejected(count, errors).whole, 0.9)
    assert found == share_interval(count, errors, 0.9)


def test_many_errors_rejected_and_kept_are_left_to_resamples() -> None:
    assert selective.errors_removed_interval(rejected(10, 20).whole, 0.95) is None


def test_the_exact_interval_takes_ties_by_expectation_and_needs_an_error() -> None:
    p, wrong = np.tile([0.6, 0.4], (100, 1)), np.arange(100) < 7
    found = selective.errors_removed_interval(Rows.checked(p, wrong.astype(int)).whole, 0.95)
    assert found is not None
    assert found.estimate == pytest.approx(0.1)
    assert found.low < 0.1 < found.high
    none = selective.errors_removed_interval(Rows.checked(p, np.zeros(100)).whole, 0.95)
    assert none is not None
    assert not none.known
