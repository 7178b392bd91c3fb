"""Exact intervals of shares: for counts so small that drawing rows again tells too little."""

from __future__ import annotations

import math

from posthoc_bhpeft.audit.metrics.bootstrap import Interval


def share_interval(count: float, rows: int, confidence: float = 0.95) -> Interval:
    """A share with its exact interval (Clopper and Pearson 1934); NaN of no rows.

    https://doi.org/10.1093/biomet/26.4.404

    Args:
        count: How many of the rows; a fraction, as ties counted by expectation give, has ends
            between those of its neighbours.
        rows: Of how many.
        confidence: Coverage of the interval.
    """
    from scipy.stats import beta

    if rows == 0:
        return Interval(math.nan, math.nan, math.nan)
    tail = 0.5 * (1.0 - confidence)
    low = 0.0 if count == 0 else float(beta.ppf(tail, count, rows - count + 1))
    high = 1.0 if count == rows else float(beta.ppf(1.0 - tail, count + 1, rows - count))
    return Interval(count / rows, low, high)
