"""Tests and intervals of shares of right answers, and many p-values at once."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from posthoc_bhpeft.audit.arrays import Floats
from posthoc_bhpeft.audit.metrics import Interval
from posthoc_bhpeft.errors import ConfigError

# Polynomials shorter than this are multiplied term by term.
_DIRECT = 256


class Correction(str, Enum):
    """What many p-values are adjusted for."""

    HOLM = "holm"
    """The chance of even one false alarm (Holm, 1979)."""
    BENJAMINI_HOCHBERG = "benjamini-hochberg"
    """The expected share of false alarms among the alarms (Benjamini and Hochberg, 1995)."""


def check_level(level: float) -> float:
    """The level, if it is one.

    Raises:
        ConfigError: If it is not inside (0, 1).
    """
    if not 0.0 < level < 1.0:
        raise ConfigError(f"level is {level}, it must be inside (0, 1), such as 0.95.")
    return level


def adjust(p_values: Sequence[float], correction: Correction | str = Correction.HOLM) -> Floats:
    """P-values `(N,)` that may each be held against the level as if it were the only one.

    Holm: the `k`-th smallest becomes `max_{j <= k} (N - j + 1) p_(j)`, at most 1; valid however
    the tests depend on each other. Benjamini-Hochberg: `min_{j >= k} N p_(j) / j`.

    Raises:
        ConfigError: If there is no such correction.
    """
    known = [one.value for one in Correction]
    if correction not in known:
        raise ConfigError(f"correction is {correction!r}; supported are {' and '.join(known)}.")
    p = np.asarray(p_values, dtype=np.float64)
    order, ranks = np.argsort(p, kind="stable"), np.arange(1, len(p) + 1)
    if correction == Correction.HOLM:
        steps = np.maximum.accumulate(p[order] * (len(p) - ranks + 1))
    else:
        steps = np.minimum.accumulate((p[order] * len(p) / ranks)[::-1])[::-1]
    found = np.empty_like(p)
    found[order] = np.minimum(steps, 1.0)
    return found


def wilson(right: int, rows: int, level: float = 0.95) -> Interval:
    """Wilson's score interval of a share (Wilson, 1927); inside [0, 1] by construction."""
    from scipy.stats import binomtest

    ends = binomtest(right, rows).proportion_ci(check_level(level), method="wilson")
    return Interval(right / rows, float(ends.low), float(ends.high))


def accuracy_p_value(right: NDArray[np.bool_], others: NDArray[np.bool_]) -> float:
    """Fisher's exact test that two sets of rows are right equally often, two-sided.

    Args:
        right: Whether each row of a group is right, `(N,)`.
        others: Whether each other row is, any number.
    """
    from scipy.stats import fisher_exact

    table = [[int(one.sum()), int((~one).sum())] for one in (right, others)]
    return float(fisher_exact(table)[1])


def accuracy_difference(
    right: NDArray[np.bool_], others: NDArray[np.bool_], level: float = 0.95
) -> Interval:
    """Accuracy of a set of rows less that of others, with Newcombe's interval (1998, method 10).

    Each end is as far off as the Wilson ends of the two shares together, so it is not empty where
    every row is right; https://doi.org/10.1002/(SICI)1097-0258(19980430)17:8<873::AID-SIM779>3.0.CO;2-I.

    Args:
        right: Whether each row is right, `(N,)`, one or more.
        others: Whether each of the others is, `(M,)`, one or more.
        level: Coverage.
    """
    one, two = (wilson(int(each.sum()), len(each), level) for each in (right, others))
    estimate = one.estimate - two.estimate
    down = np.hypot(one.estimate - one.low, two.high - two.estimate)
    up = np.hypot(one.high - one.estimate, two.estimate - two.low)
    return Interval(estimate, float(estimate - down), float(estimate + up))


def poisson_binomial(chances: Floats) -> Floats:
    """Distribution of the number of successes in N trials of different chances, `(N + 1,)`.

    The product of the polynomials `1 - p_n + p_n x`, pair by pair. It is exact but for rounding,
    about 1e-15 in every entry, so a smaller tail is not resolved.

    Args:
        chances: `(N,)`, each from 0 to 1.
    """
    from scipy.signal import fftconvolve

    parts: list[Floats] = [np.array([1.0 - p, p]) for p in chances] or [np.ones(1)]
    while len(parts) > 1:
        multiply = np.convolve if len(parts[0]) < _DIRECT else fftconvolve
        pairs = zip(parts[::2], parts[1::2], strict=False)
        odd = parts[-1:] if len(parts) % 2 else []
        parts = [multiply(one, two) for one, two in pairs] + odd
    return np.maximum(parts[0], 0.0)


def calibration_p_value(confidence: Floats, right: NDArray[np.bool_]) -> float:
    """Exact test that as many rows are right as their confidences say, two-sided.

    Given calibrated confidences, rows are right independently with these chances, so their number
    is Poisson-binomial: `p = min(1, 2 min(P(S <= s), P(S >= s)))`.

    Args:
        confidence: Probability of the predicted class, `(N,)`.
        right: Whether it was right, `(N,)`.
    """
    chances, seen = poisson_binomial(confidence), int(right.sum())
    return float(min(1.0, 2.0 * min(chances[: seen + 1].sum(), chances[seen:].sum())))


def gap_interval(confidence: Floats, right: NDArray[np.bool_], level: float = 0.95) -> Interval:
    """Mean confidence less accuracy, with an interval for it over all rows such as these.

    Normal, `z` standard errors of `confidence - right` about its mean, after `z^2 / 2` right and
    as many wrong rows of mean confidence were added (Agresti and Coull, 1998), so that it is never
    empty. In simulations with 25 and 100 rows, whatever the miscalibration, 95 % were 94 to 97 %.

    Args:
        confidence: Probability of the predicted class, `(N,)`.
        right: Whether it was right, `(N,)`.
        level: Coverage.
    """
    z = NormalDist().inv_cdf(0.5 + check_level(level) / 2.0)
    mean, rows = float(confidence.mean()), len(confidence)
    off = np.append(confidence - right, [mean - 1.0, mean])
    weights = np.append(np.ones(rows), [z**2 / 2.0] * 2) / (rows + z**2)
    centre = float(weights @ off)
    half = z * float(np.sqrt(weights @ (off - centre) ** 2 / (rows + z**2)))
    estimate = mean - float(right.mean())
    return Interval(
        estimate, max(min(centre - half, estimate), -1.0), min(max(centre + half, estimate), 1.0)
    )
