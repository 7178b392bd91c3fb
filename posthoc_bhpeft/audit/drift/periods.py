"""Uncertainty, confidence and accuracy over time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from posthoc_bhpeft.audit.arrays import Floats
from posthoc_bhpeft.audit.drift.twosample import resampled_means
from posthoc_bhpeft.audit.metrics import Interval
from posthoc_bhpeft.audit.predictions import Predictions
from posthoc_bhpeft.audit.slices.grouping import Group, as_numbers, group_times, is_missing
from posthoc_bhpeft.audit.slices.significance import wilson
from posthoc_bhpeft.data.dates import parse_dates
from posthoc_bhpeft.errors import DataError

_PERMUTATIONS, _RESAMPLES = 1999, 1000


@dataclass(frozen=True)
class Period:
    """One stretch of time, or one part of a column in order.

    Attributes:
        name: Of the period.
        rows: In it.
        epistemic: Mean epistemic uncertainty in nats, or mean doubt where there is none.
        confidence: Mean probability of the predicted class, with its interval.
        accuracy: With its interval; `None` without labels.
    """

    name: str
    rows: int
    epistemic: Interval
    confidence: Interval
    accuracy: Interval | None


@dataclass(frozen=True)
class Trend:
    """Whether something grows or falls with time.

    Attributes:
        of: What: `epistemic uncertainty`, `accuracy`.
        correlation: Of its values with the rank of their time, -1 to 1.
        p_value: Of the permutation test that time is nothing to it.
        early: Mean over the earlier half of the rows.
        late: Mean over the later half.
    """

    of: str
    correlation: float
    p_value: float
    early: float
    late: float


@dataclass(frozen=True)
class Timeline:
    """Rows of a set in time.

    Attributes:
        rows: Positions of rows whose time is known, `(N,)`.
        ranks: Their moments as `0, 1, 2, ...`, equal ones alike, `(N,)`.
        groups: Periods, their rows as positions in the set.
    """

    rows: NDArray[np.int64]
    ranks: NDArray[np.int64]
    groups: tuple[Group, ...]


def timeline(predictions: Predictions, column: str, *, smallest: int = 10) -> Timeline:
    """Read a column of dates or numbers, and cut it into periods.

    Raises:
        DataError: If there is no such column, or it holds no dates and no numbers.
    """
    if column not in predictions.columns:
        known = ", ".join(map(repr, predictions.columns)) or "none"
        raise DataError(f"There is no column {column!r} that says when; there are {known}.")
    values = predictions.columns[column]
    rows = np.array([i for i, v in enumerate(values) if not is_missing(v)], dtype=np.int64)
    chosen = [values[i] for i in rows]
    numbers = as_numbers(chosen)
    moments = parse_dates(chosen) if numbers is None else numbers
    if moments is None:
        example = chosen[0] if chosen else None
        raise DataError(
            f"The column {column!r} holds neither dates nor numbers alone, such as {example!r}. "
            "Dates: 2024-03-09, 2024-03-09T18:30, 2024/03/09, 20240309, 9 Mar 2024, 09.03.2024, "
            "3/9/2024 where some day is above 12. All rows must be written alike; empty ones are "
            "left out."
        )
    keys = np.array([moment.isoformat() for moment in moments]) if numbers is None else moments
    ranks = np.unique(np.asarray(keys), return_inverse=True)[1].astype(np.int64)
    groups = tuple(
        Group(g.name, rows[g.rows]) for g in group_times(moments, most=12, smallest=smallest)
    )
    return Timeline(rows, ranks, groups)


def periods_of(
    predictions: Predictions, score: str, line: Timeline, rng: np.random.Generator, level: float
) -> tuple[Period, ...]:
    """Every period with the means of a score, of confidence and of right answers."""
    return tuple(_period(predictions, score, one, rng, level) for one in line.groups)


def _period(
    predictions: Predictions, score: str, group: Group, rng: np.random.Generator, level: float
) -> Period:
    right = None if predictions.labels is None else predictions.right[group.rows]
    return Period(
        name=group.name,
        rows=len(group),
        epistemic=_mean(predictions.score(score)[group.rows], rng, level),
        confidence=_mean(predictions.confidence[group.rows], rng, level),
        accuracy=None if right is None else wilson(int(right.sum()), len(right), level),
    )


def _mean(values: Floats, rng: np.random.Generator, level: float) -> Interval:
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(resampled_means(values, rng, _RESAMPLES), [tail, 1.0 - tail])
    return Interval(float(values.mean()), float(low), float(high))


def trend(of: str, values: Floats, ranks: NDArray[np.int64], rng: np.random.Generator) -> Trend:
    """Test that values do not go with time, moments with all their rows being permuted.

    Rows of one moment may belong together, as sentences of one document do. The statistic is
    `sum_g r_g sum_{n in g} (x_n - mean)`, `r_g` the rank of moment `g`; ranks are dealt to moments
    anew, so such rows stay together.

    Args:
        of: What the values are.
        values: `(N,)`.
        ranks: Moments as `0 .. G - 1`, `(N,)`.
        rng: Source of chance.
    """
    centred = values - values.mean()
    sums = np.bincount(ranks, weights=centred)
    moments = np.arange(len(sums)) - (len(sums) - 1) / 2.0
    dealt = rng.permuted(np.tile(moments, (_PERMUTATIONS, 1)), axis=1)
    seen, drawn = abs(moments @ sums), np.abs(dealt @ sums)
    p = (1 + (drawn >= seen * (1.0 - 1e-12)).sum()) / (1 + _PERMUTATIONS)
    late = ranks >= np.quantile(ranks, 0.5) if len(sums) > 1 else np.ones(len(ranks), dtype=bool)
    late = late if not late.all() else ranks > ranks.min()
    # Equal values may be off their own mean by rounding, which is nothing that goes with time.
    if late.all() or not late.any() or np.ptp(values) == 0:
        return Trend(of, 0.0, 1.0, float(values.mean()), float(values.mean()))
    correlation = float(np.corrcoef(ranks, values)[0, 1])
    early, later = float(values[~late].mean()), float(values[late].mean())
    return Trend(of, correlation, float(p), early, later)
