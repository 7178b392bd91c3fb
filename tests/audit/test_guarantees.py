"""The promises of thresholds, held against brute force, closed forms and repeated draws."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from posthoc_bhpeft.audit.arrays import Floats
from posthoc_bhpeft.audit.decisions import guarantees as g
from posthoc_bhpeft.errors import ConfigError

DRAWS = 500
CONFIDENCE = 0.9
ALLOWED = DRAWS * (1 - CONFIDENCE) + 4 * math.sqrt(DRAWS * CONFIDENCE * (1 - CONFIDENCE))
"""Broken promises that chance explains: four standard errors above the promised number."""

GRID = np.linspace(0.0, 1.0, 20_001)

# The rate of errors at each score; `rate` is the one wanted of the answers below a threshold.
WORLDS: dict[str, tuple[Callable[[Floats], Floats], int, float]] = {
    "grows": (lambda s: 0.02 + 0.5 * s, 250, 0.15),
    "sharp": (lambda s: np.where(s < 0.4, 0.1, 0.9), 250, 0.2),
    "at the rate everywhere": (lambda s: np.full_like(s, 0.2001), 300, 0.2),
    "above, below, above": (lambda s: 0.2 + 0.15 * np.cos(9 * s), 300, 0.2),
    "flawed at the top": (lambda s: np.where(s < 0.1, 0.5, 0.05 + 0.5 * (s - 0.1)), 300, 0.2),
    "many rows": (lambda s: 0.1 + 0.4 * s, 1500, 0.2),
}


@pytest.fixture(autouse=True)
def starts_are_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where walks begin hangs on no row, so hundreds of draws need not look for it again."""
    monkeypatch.setattr(g, "walk_starts", cache(g.walk_starts))


def broken(name: str, find: Callable[..., float | None], levels: int | None = None) -> int:
    """In how many of the draws the threshold found breaks its promise."""
    error, rows, rate = WORLDS[name]
    rng = np.random.default_rng([len(name), levels or 0])
    # The true rate below each threshold, once; scores may be rounded down to so many levels.
    cumulated = np.cumsum(error(GRID)) / np.arange(1, len(GRID) + 1)
    count = 0
    for _ in range(DRAWS):
        scores = rng.random(rows)
        wrong = rng.random(rows) < error(scores)
        if levels is not None:
            scores = np.floor(scores * levels) / levels
        threshold = find(scores, wrong, rate, CONFIDENCE)
        if threshold is None:
            continue
        reach = threshold if levels is None else (math.floor(threshold * levels) + 1) / levels
        place = min(max(int(np.searchsorted(GRID, reach, side="right")) - 1, 0), len(GRID) - 1)
        count += bool(cumulated[place] > rate + 1e-4)
    return count


@pytest.mark.parametrize("name", WORLDS)
def test_an_error_rate_is_kept_as_often_as_promised(name: str) -> None:
    assert broken(name, g.threshold_for_errors) <= ALLOWED


@pytest.mark.parametrize("levels", [4, 25])
@pytest.mark.parametrize("name", ["grows", "above, below, above"])
def test_ties_do_not_break_the_promise(name: str, levels: int) -> None:
    def finite(*arguments: object) -> float | None:
        found = g.threshold_for_errors(*arguments)  # type: ignore[arg-type]
        return 0.999999 if found == math.inf else found

    assert broken(name, finite, levels) <= ALLOWED


def test_the_check_sees_a_rule_that_promises_too_much() -> None:
    """The largest threshold with few enough errors seen, with no test at all."""

    def naive(scores: Floats, wrong: Floats, rate: float, confidence: float) -> float | None:
        order = np.argsort(scores)
        good = np.cumsum(wrong[order]) <= rate * np.arange(1, len(scores) + 1)
        return float(scores[order][good.nonzero()[0][-1]]) if good.any() else None

    assert broken("grows", naive) > 2 * ALLOWED


def test_the_check_sees_tests_in_no_order() -> None:
    """The best of all thresholds, each tested at the full level, and none ends the search."""

    def best_of_all(scores: Floats, wrong: Floats, rate: float, confidence: float) -> float | None:
        order = np.argsort(scores)
        rows = np.arange(1, len(scores) + 1)
        good = binom.cdf(np.cumsum(wrong[order]), rows, rate) <= 1 - confidence
        return float(scores[order][good.nonzero()[0][-1]]) if good.any() else None

    assert broken("at the rate everywhere", best_of_all) > ALLOWED


def test_the_promise_is_not_empty() -> None:
    """Of clearly good answers most are automatic, and the threshold is near the true one."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(50):
        scores = rng.random(1000)
        threshold = g.threshold_for_errors(scores, rng.random(1000) < 0.3 * scores**2, 0.05, 0.95)
        found.append(0.0 if threshold is None else min(threshold, 1.0))
    # 0.1 t^2 = 0.05 at t = 0.707.
    assert 0.5 < np.mean(found) < 0.707


def test_a_walk_is_what_a_loop_finds() -> None:
    rng = np.random.default_rng(1)
    lengths = set()
    for _ in range(200):
        ranked = np.sort(rng.integers(0, 40, 80)).astype(float)
        errors = np.cumsum(rng.random(80) < 0.1 * rng.random())
        expected = 0
        for m in range(20, 81):
            if not binomtest(int(errors[m - 1]), m, 0.2, alternative="less").pvalue <= 0.1:
                break
            if m == 80 or ranked[m] > ranked[m - 1]:
                expected = m
        assert g.walk(ranked, errors, 0.2, 0.1, 20) == expected
        lengths.add(expected)
    assert {0, 80} < lengths


def test_a_threshold_lies_just_below_the_first_row_not_answered() -> None:
    scores = np.repeat([0.1, 0.2, 0.3], 40)
    threshold = g.threshold_for_errors(scores, scores > 0.25, 0.1, 0.95)
    assert threshold == np.nextafter(0.3, 0)
    assert g.threshold_for_errors(scores, scores > 1, 0.1, 0.95) == math.inf
    assert g.threshold_for_errors(scores, scores > 0, 0.1, 0.95) is None


def test_equal_scores_are_never_torn_apart() -> None:
    wrong = np.zeros(200, dtype=bool)
    wrong[150:] = True
    assert g.threshold_for_errors(np.zeros(200), wrong, 0.1, 0.95) is None


def test_order_of_the_rows_does_not_matter() -> None:
    rng = np.random.default_rng(3)
    scores = rng.random(400)
    wrong = rng.random(400) < 0.2 * scores
    order = rng.permutation(400)
    one = g.threshold_for_errors(scores, wrong, 0.1, 0.9)
    assert one is not None
    assert one == g.threshold_for_errors(scores[order], wrong[order], 0.1, 0.9)


def test_starts_are_known_beforehand_and_share_the_level() -> None:
    assert g.walk_starts(10, 0.05, 0.95) == []
    assert g.walk_starts(58, 0.05, 0.95) == []
    assert g.walk_starts(59, 0.05, 0.95) == [59]
    assert len(g.walk_starts(500, 0.05, 0.95)) == 1
    starts = g.walk_starts(100_000, 0.05, 0.95)
    assert len(starts) == 4
    assert starts[-1] == 100_000
    assert g.passes(0.025, starts[0], 0.05, 0.05 / 4)
    assert all(later > 3 * start for start, later in pairwise(starts))


def test_the_fewest_rows() -> None:
    for rate, confidence in ((0.05, 0.95), (0.1, 0.9), (0.01, 0.99)):
        rows = g.rows_without_error(rate, confidence)
        assert (1 - rate) ** rows <= 1 - confidence < (1 - rate) ** (rows - 1)
    for seen in (0.0, 0.02, 0.04):
        rows = g.rows_for_rate(seen, 0.05, 0.05)
        assert g.passes(seen, rows, 0.05, 0.05)
    assert g.rows_for_rate(0.0, 0.05, 0.05) == 59
    assert g.rows_for_rate(0.06, 0.05, 0.05) > 1_000_000


@pytest.mark.parametrize("levels", [None, 5])
def test_a_share_is_kept_as_often_as_promised(levels: int | None) -> None:
    rng, rows, share, count = np.random.default_rng(5), 60, 0.2, 0
    for _ in range(DRAWS):
        scores = rng.random(rows)
        scores = scores if levels is None else np.floor(scores * levels) / levels
        threshold = g.threshold_for_share(scores, share, CONFIDENCE)
        assert threshold is not None
        above = 1 - threshold if levels is None else 1 - (threshold + 1 / levels)
        count += above > share + 1e-9
    assert count <= ALLOWED
    if levels is None:
        # With one order statistic less it would be broken too often: the threshold is the best.
        k = int(binom.ppf(CONFIDENCE, rows, 1 - share)) + 1
        assert binom.cdf(k - 1, rows, 1 - share) >= CONFIDENCE > binom.cdf(k - 2, rows, 1 - share)
        assert g.threshold_for_share(np.arange(1.0, 61.0), share, CONFIDENCE) == k


def test_a_share_needs_rows() -> None:
    assert g.threshold_for_share(np.arange(13.0), 0.2, 0.95) is None
    assert g.threshold_for_share(np.arange(14.0), 0.2, 0.95) == 13.0
    assert g.rows_without_error(0.2, 0.95) == 14


@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, 5.0, math.nan])
def test_a_share_lies_between_zero_and_one(value: float) -> None:
    with pytest.raises(ConfigError, match=r"rate is .* between 0 and 1, such as 0.05 for 5 %"):
        g.check_open("rate", value)
