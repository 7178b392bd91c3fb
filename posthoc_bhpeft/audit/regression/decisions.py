"""Which predictions go to a human, by the predicted deviation, and what error is left."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from posthoc_bhpeft.audit.decisions.guarantees import (
    check_open,
    percent,
    rows_without_error,
    threshold_for_errors,
    threshold_for_share,
)
from posthoc_bhpeft.audit.decisions.needed import missing_rows
from posthoc_bhpeft.audit.metrics import Interval
from posthoc_bhpeft.audit.metrics.bootstrap import draw_weights, ends, quantile
from posthoc_bhpeft.audit.metrics.shares import share_interval
from posthoc_bhpeft.audit.regression.predictions import RealPredictions
from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.review import review_if


@dataclass(frozen=True)
class RealDecision:
    """A threshold on the predicted deviation: rows above it go to a human.

    Attributes:
        goal: What was asked for, in words.
        threshold: In the unit of the targets; rows with a larger deviation are reviewed. Infinite
            where none needs to be, minus infinite where all must be.
        guarantee: What holds, for which rows, with which probability, in words.
        feasible: Whether the goal can be promised from so many rows.
        reviewed: Share of rows reviewed, with its exact interval.
        rmse: Root mean squared error of the automatic predictions, with its bootstrap interval;
            NaN where there are none, or no targets.
        rmse_before: Of all predictions.
        off: Share of the automatic predictions that are off by more than the tolerance, with its
            exact interval; `None` where no tolerance was given.
        rows: That the threshold was found on.
        rows_needed: About how many would be needed, where the goal is not feasible and more rows
            would help.
        review_if: The threshold as a condition: "standard_deviation > 0.25".
    """

    goal: str
    threshold: float
    guarantee: str
    feasible: bool
    reviewed: Interval
    rmse: Interval
    rmse_before: float
    off: Interval | None
    rows: int
    rows_needed: int | None = None
    review_if: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "review_if", review_if("standard_deviation", self.threshold))


def review_least_sure(
    predictions: RealPredictions,
    share: float = 0.10,
    *,
    tolerance: float | None = None,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> RealDecision:
    """Send the rows with the largest deviation to a human, but at most a share of all rows.

    With probability `confidence` over the draw of the rows, at most `share` of all new rows from
    the same distribution have a deviation above the threshold. Targets are not needed for that,
    only for what is said about the error that is left.

    Args:
        predictions: Rows that played no part in the fit.
        share: Wanted share of rows reviewed.
        tolerance: See `check_tolerance`.
        confidence: Of the promise, and coverage of the intervals.
        resamples: Of the bootstrap of the error.
        seed: Of the resamples.

    Returns:
        The decision; where nothing can be promised, one that sends no row to a human.

    Raises:
        ConfigError: If a setting is out of range.
    """
    check_open("share", share)
    check_open("confidence", confidence)
    goal = f"at most {percent(share)} of the rows reviewed"
    rows = len(predictions)
    threshold = threshold_for_share(predictions.deviation, share, confidence)
    needed, guarantee = None, (
        f"With probability {percent(confidence)} or more over the draw of the {rows} rows, at most "
        f"{percent(share)} of new rows from the same distribution go to a human."
    )  # fmt: skip
    if threshold is None:
        needed = rows_without_error(share, confidence)
        guarantee = (
            f"{rows} rows are too few to promise {goal} with probability {percent(confidence)}: at "
            f"least {needed} are needed."
        )
    return decided(
        predictions, goal, math.inf if threshold is None else threshold, guarantee,
        feasible=threshold is not None, needed=needed, tolerance=tolerance, confidence=confidence,
        resamples=resamples, seed=seed,
    )  # fmt: skip


def at_most_off(
    predictions: RealPredictions,
    tolerance: float,
    rate: float = 0.05,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> RealDecision:
    """Predict as many rows as can be promised to be off by more than a tolerance at most so often.

    With probability `confidence` over the draw of the rows, of all new rows from the same
    distribution with a deviation up to the threshold at most `rate` are off by more than the
    tolerance. Exact in finite samples; see `posthoc_bhpeft.audit.decisions.guarantees`.

    Args:
        predictions: Rows with targets that played no part in the fit.
        tolerance: See `check_tolerance`.
        rate: Wanted share of automatic predictions that are off by more.
        confidence: Of the promise, and coverage of the intervals.
        resamples: Of the bootstrap of the error.
        seed: Of the resamples.

    Returns:
        The decision; where nothing can be promised, one that sends all rows to a human.

    Raises:
        ConfigError: If a setting is out of range.
        DataError: If there are no targets.
    """
    check_open("rate", rate)
    check_open("confidence", confidence)
    off = off_by_more(predictions, tolerance)
    goal = f"at most {percent(rate)} of the automatic predictions off by more than {tolerance:g}"
    threshold = threshold_for_errors(predictions.deviation, off, rate, confidence)
    needed, guarantee = None, (
        f"With probability {percent(confidence)} or more over the draw of the {len(off)} rows, at "
        f"most {percent(rate)} of the automatic predictions for new rows from the same "
        f"distribution are off by more than {tolerance:g}."
    )  # fmt: skip
    if threshold is None:
        needed, reason = missing_rows(predictions.deviation, off, rate, confidence)
        guarantee = f"Wrong is what is off by more than {tolerance:g}. {reason}"
    return decided(
        predictions, goal, -math.inf if threshold is None else threshold, guarantee,
        feasible=threshold is not None, needed=needed, tolerance=tolerance, confidence=confidence,
        resamples=resamples, seed=seed,
    )  # fmt: skip


def decided(
    predictions: RealPredictions,
    goal: str,
    threshold: float,
    guarantee: str,
    *,
    feasible: bool,
    needed: int | None,
    tolerance: float | None,
    confidence: float,
    resamples: int,
    seed: int,
) -> RealDecision:
    """A decision with what it costs on the rows it was found on."""
    kept = predictions.deviation <= threshold
    rows, known = len(kept), predictions.targets is not None
    off = None
    if tolerance is not None and known:
        wrong = off_by_more(predictions, tolerance)
        off = share_interval(int((kept & wrong).sum()), int(kept.sum()), confidence)
    return RealDecision(
        goal=goal,
        threshold=threshold,
        guarantee=guarantee,
        feasible=feasible,
        reviewed=share_interval(rows - int(kept.sum()), rows, confidence),
        rmse=rmse_of(predictions, kept, confidence, resamples, seed),
        rmse_before=float(np.sqrt((predictions.error**2).mean())) if known else math.nan,
        off=off,
        rows=rows,
        rows_needed=needed,
    )


def rmse_of(
    predictions: RealPredictions,
    kept: NDArray[np.bool_],
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Root mean squared error of some rows, with its bootstrap interval; NaN where there are none.

    Args:
        predictions: With targets, or the figure is NaN too.
        kept: Which rows, `(N,)`.
        level: Coverage of the interval.
        resamples: Number of resamples.
        seed: Of them.
    """
    if predictions.targets is None or not kept.any():
        return Interval(math.nan, math.nan, math.nan)
    squared = predictions.error[kept] ** 2
    estimate = float(np.sqrt(squared.mean()))
    generator = torch.Generator().manual_seed(seed)
    drawn = np.concatenate(
        [weights @ squared / len(squared)
         for weights in draw_weights(len(squared), resamples, generator)]
    )  # fmt: skip
    moved, tail = np.sqrt(drawn) - estimate, (1.0 - level) / 2.0
    return ends(estimate, quantile(moved, tail), quantile(moved, 1.0 - tail), least=0.0)


def off_by_more(predictions: RealPredictions, tolerance: float) -> NDArray[np.bool_]:
    """Which predictions are off by more than a tolerance, `(N,)`."""
    found: NDArray[np.bool_] = np.abs(predictions.error) > check_tolerance(tolerance)
    return found


def check_tolerance(tolerance: float) -> float:
    """The largest error that does no harm, in the unit of the targets.

    Raises:
        ConfigError: If it is not a number above 0.
    """
    if not (math.isfinite(tolerance) and tolerance > 0.0):
        raise ConfigError(
            f"tolerance is {tolerance}; it is the largest error that does no harm, a number above "
            "0 in the unit of the targets."
        )
    return tolerance
