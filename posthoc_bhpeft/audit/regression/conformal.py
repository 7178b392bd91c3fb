r"""Split conformal intervals: they hold the target as often as promised, whatever the model.

From `n` rows with targets, each as far off as `s_i = |y_i - mu_i| / sigma_i` of its predicted
deviations, the factor `q` is the `k`-th smallest, `k = ceil((n + 1)(1 - alpha))`, and the interval
of a row is `mu +- q sigma`. If the rows and a new one are exchangeable, its target is inside with
probability `1 - alpha` or more (normalised conformal prediction: Lei et al. 2018,
https://arxiv.org/abs/1604.04173, section 5.2). That is on average over rows: it is no promise for
each of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from posthoc_bhpeft.audit.arrays import Floats
from posthoc_bhpeft.audit.decisions.conformal import (
    conformal_quantile,
    coverage_range,
    rows_for_sets,
)
from posthoc_bhpeft.audit.decisions.guarantees import check_open, percent
from posthoc_bhpeft.audit.metrics import Interval
from posthoc_bhpeft.audit.metrics.gaussian import reach
from posthoc_bhpeft.audit.metrics.shares import share_interval
from posthoc_bhpeft.audit.regression.predictions import RealPredictions


@dataclass(frozen=True)
class ConformalIntervals:
    """Intervals with a promise: `mean +- factor * deviation`.

    Attributes:
        factor: Deviations to either side; infinite where there are too few rows.
        gaussian: Deviations that a Gaussian of the same level has.
        alpha: Allowed share of rows whose target is outside.
        guarantee: What holds, in words.
        feasible: Whether there are rows enough for a finite factor.
        coverage: The middle and the 95 % range of the true coverage over draws of so many rows, as
            theory has it if no two rows are equally far off.
        width: Their mean width on these rows, in the unit of the targets.
        rows: That the factor was found on.
    """

    factor: float
    gaussian: float
    alpha: float
    guarantee: str
    feasible: bool
    coverage: Interval
    width: float
    rows: int

    @property
    def stretch(self) -> float:
        """How many times as wide as the Gaussian intervals they are."""
        return self.factor / self.gaussian

    def limits(self, predictions: RealPredictions) -> tuple[Floats, Floats]:
        """Lower and upper end of each row's interval, `(N,)` each."""
        half = self.factor * predictions.deviation
        return predictions.mean - half, predictions.mean + half


@dataclass(frozen=True)
class IntervalCheck:
    """How conformal intervals did on rows that had no say in them.

    Attributes:
        coverage: Share of targets inside, with its exact 95 % interval.
        width: Mean width, in the unit of the targets.
        rows: Rows.
    """

    coverage: Interval
    width: float
    rows: int


def conformal_intervals(calibration: RealPredictions, alpha: float = 0.10) -> ConformalIntervals:
    """Intervals that hold the target with probability `1 - alpha` or more.

    Args:
        calibration: Rows with targets that played no part in the fit.
        alpha: Allowed share of rows whose target is outside.

    Raises:
        ConfigError: If alpha is not between 0 and 1.
        DataError: If there are no targets.
    """
    check_open("alpha", alpha)
    rows = len(calibration)
    factor = conformal_quantile(np.abs(calibration.gaussians.z), alpha)
    promise = (
        f"The interval of a new row from the same distribution holds its target with probability "
        f"{percent(1 - alpha)} or more, over the draw of the row and of the {rows} rows that the "
        "factor was found on."
    )
    if not math.isfinite(factor):
        promise += (
            f" It holds only because every interval is without end: {rows} rows are too few, at "
            f"least {rows_for_sets(alpha)} are needed."
        )
    return ConformalIntervals(
        factor=factor,
        gaussian=reach(1.0 - alpha),
        alpha=alpha,
        guarantee=promise,
        feasible=math.isfinite(factor),
        coverage=coverage_range(rows, alpha),
        width=float(2.0 * factor * calibration.deviation.mean()),
        rows=rows,
    )


def check_intervals(conformal: ConformalIntervals, predictions: RealPredictions) -> IntervalCheck:
    """Coverage and width of the intervals on rows that had no say in them.

    Raises:
        DataError: If there are no targets.
    """
    low, high = conformal.limits(predictions)
    targets = predictions.known_targets
    held = int(((low <= targets) & (targets <= high)).sum())
    rows = len(predictions)
    return IntervalCheck(share_interval(held, rows), float((high - low).mean()), rows)
