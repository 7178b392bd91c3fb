from __future__ import annotations

import itertools

import numpy as np
import pytest

from posthoc_bhpeft.audit.slices.significance import (
    Correction,
    accuracy_difference,
    accuracy_p_value,
    adjust,
    calibration_p_value,
    check_level,
    gap_interval,
    poisson_binomial,
    wilson,
)
from posthoc_bhpeft.errors import ConfigError


@pytest.mark.parametrize("rows", [0, 1, 2, 7, 10])
def test_poisson_binomial_is_the_sum_over_all_outcomes(rows: int) -> None:
    p = np.random.default_rng(rows).random(rows)
    expected = np.zeros(rows + 1)
    for outcome in itertools.product([0, 1], repeat=rows):
        chosen = np.array(outcome, dtype=bool)
        expected[chosen.sum()] += np.prod(np.where(chosen, p, 1 - p))
    np.testing.assert_allclose(poisson_binomial(p), expected, atol=1e-14)


def test_poisson_binomial_of_many_equal_chances_is_binomial() -> None:
    from scipy.stats import binom

    found = poisson_binomial(np.full(3001, 0.8))
    np.testing.assert_allclose(found, binom.pmf(np.arange(3002), 3001, 0.8), atol=1e-12)
    assert found.sum() == pytest.approx(1.0, abs=1e-12)


def test_calibration_p_value_by_hand() -> None:
    confidence = np.array([0.9, 0.9, 0.9])
    none_right = np.zeros(3, dtype=bool)
    assert calibration_p_value(confidence, none_right) == pytest.approx(2 * 0.1**3)
    assert calibration_p_value(confidence, ~none_right) == 1.0


@pytest.mark.parametrize("rows", [4, 15, 60])
def test_calibration_test_keeps_its_level_exactly(rows: int) -> None:
    """The chance of p <= a, over the exact distribution of the number right, is at most a."""
    confidence = np.random.default_rng(rows).uniform(0.3, 1.0, rows)
    chances = poisson_binomial(confidence)
    p = np.array([calibration_p_value(confidence, np.arange(rows) < s) for s in range(rows + 1)])
    for a in (0.2, 0.05, 0.01):
        assert chances[p <= a].sum() <= a + 1e-12


def test_accuracy_p_value_is_the_sum_over_all_tables() -> None:
    from math import comb

    right, others = np.arange(9) < 3, np.arange(14) < 12
    total, weights = 15, {}
    for k in range(max(0, total - 14), min(9, total) + 1):
        weights[k] = comb(9, k) * comb(14, total - k) / comb(23, total)
    expected = sum(w for w in weights.values() if w <= weights[3] * (1 + 1e-9))
    assert accuracy_p_value(right, others) == pytest.approx(expected)


def test_holm_by_hand() -> None:
    np.testing.assert_allclose(adjust([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
    np.testing.assert_allclose(adjust([0.9, 0.8]), [1.0, 1.0])
    assert len(adjust([])) == 0


def test_holm_rejects_what_stepping_down_rejects() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        p = rng.random(8) ** 4
        rejected = set()
        for step, i in enumerate(np.argsort(p)):
            if p[i] > 0.05 / (8 - step):
                break
            rejected.add(int(i))
        assert set(np.flatnonzero(adjust(p.tolist()) <= 0.05)) == rejected


def test_benjamini_hochberg_agrees_with_scipy() -> None:
    from scipy.stats import false_discovery_control

    p = np.random.default_rng(1).random(20) ** 3
    found = adjust(p.tolist(), Correction.BENJAMINI_HOCHBERG)
    np.testing.assert_allclose(found, false_discovery_control(p))
    assert (found <= adjust(p.tolist(), "holm")).all()


def test_gap_interval_by_hand() -> None:
    """With z^2 = 4: two right and two wrong rows more."""
    from statistics import NormalDist

    level = 2 * NormalDist().cdf(2.0) - 1
    confidence, right = np.array([0.9, 0.7, 0.6, 0.8]), np.array([True, False, True, True])
    off = np.append(confidence - right, [0.75 - 1] * 2 + [0.75] * 2)
    found = gap_interval(confidence, right, level)
    assert found.estimate == pytest.approx(0.0)
    assert found.low == pytest.approx(off.mean() - 2 * off.std() / np.sqrt(8))
    assert found.high == pytest.approx(off.mean() + 2 * off.std() / np.sqrt(8))


def test_gap_interval_mirrors_and_is_never_empty() -> None:
    rng = np.random.default_rng(2)
    confidence, right = rng.uniform(0.4, 1.0, 50), rng.random(50) < 0.6
    one, two = gap_interval(confidence, right), gap_interval(1 - confidence, ~right)
    assert (one.low, one.high) == pytest.approx((-two.high, -two.low))
    certain = gap_interval(np.ones(30), np.ones(30, dtype=bool))
    assert certain.low <= certain.estimate == 0.0 < certain.high < 0.25


@pytest.mark.parametrize("sharpness", [1.0, 2.0, 0.6])
def test_gap_interval_covers_the_true_gap(sharpness: float) -> None:
    rng = np.random.default_rng(3)
    chance = rng.beta(4, 1.5, size=(100_000, 2))[:, 0]
    told = chance**sharpness / (chance**sharpness + (1 - chance) ** sharpness)
    true, hits = (told - chance).mean(), 0
    for _ in range(600):
        rows = rng.integers(len(chance), size=40)
        found = gap_interval(told[rows], rng.random(40) < chance[rows])
        hits += found.low <= true <= found.high
    # Three standard errors of a share of 600.
    assert hits / 600 >= 0.95 - 0.027


@pytest.mark.parametrize(("right", "rows"), [(0, 20), (13, 20), (20, 20)])
def test_wilson_solves_its_equation(right: int, rows: int) -> None:
    """At either end the share lies z standard errors away, of a share of that size."""
    found = wilson(right, rows)
    for end in {found.low, found.high} - {0.0, 1.0}:
        assert abs(right / rows - end) == pytest.approx(1.959964 * np.sqrt(end * (1 - end) / rows))


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="'bonferroni'; supported are holm and benjamini"):
        adjust([0.1], "bonferroni")
    with pytest.raises(ConfigError, match=r"level is 95.*inside \(0, 1\)"):
        check_level(95)


def test_a_difference_of_accuracies_has_newcombes_interval() -> None:
    """The examples 56/70 less 48/80, 9/10 less 3/10 and 10/10 less 0/10 of Newcombe (1998)."""
    published = {
        (56, 70, 48, 80): (0.0524, 0.3339),
        (9, 10, 3, 10): (0.1705, 0.8090),
        (10, 10, 0, 10): (0.6075, 1.0),
    }
    for (one, rows, two, others), ends in published.items():
        found = accuracy_difference(np.arange(rows) < one, np.arange(others) < two)
        assert found.estimate == pytest.approx(one / rows - two / others)
        assert (found.low, found.high) == pytest.approx(ends, abs=5e-5)
