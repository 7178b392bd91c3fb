r"""Split conformal prediction sets: classes that hold the label as often as promised.

From `n` labelled rows with strangeness `s_i` of their own label, the threshold is the `k`-th
smallest, `k = ceil((n + 1)(1 - alpha))`, and a set holds every class that is no stranger. If the
rows and a new one are exchangeable, its label is in its set with probability `1 - alpha` or more
(Vovk et al. 2005; Angelopoulos and Bates 2021, https://arxiv.org/abs/2107.07511). That is on
average over the labelled rows too: for the rows at hand the coverage varies as
Beta(k, n + 1 - k) (Vovk 2012, https://arxiv.org/abs/1209.2673), and `ConformalSets.coverage` says
how much. It is no promise for each row, nor for each class unless `per_class`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from posthoc_bhpeft.audit.arrays import Floats
from posthoc_bhpeft.audit.decisions.guarantees import check_open, percent
from posthoc_bhpeft.audit.metrics import Interval
from posthoc_bhpeft.audit.metrics.shares import share_interval
from posthoc_bhpeft.audit.predictions import Predictions
from posthoc_bhpeft.errors import DataError
from posthoc_bhpeft.sets import LAC, SetMethod, SetRule

DEFAULT_METHOD = LAC()


@dataclass(frozen=True)
class SetSizes:
    """How large the prediction sets of some rows are.

    Attributes:
        mean: Classes a set.
        counts: Rows with a set of `0 .. C` classes, `(C + 1,)`.
    """

    mean: float
    counts: tuple[int, ...]

    @property
    def single(self) -> float:
        """Share of rows whose set has one class."""
        return self.counts[1] / sum(self.counts)

    @property
    def empty(self) -> float:
        """Share of rows whose set has no class."""
        return self.counts[0] / sum(self.counts)


@dataclass(frozen=True)
class ConformalSets:
    """Prediction sets with a promise, and what they cost.

    Attributes:
        rule: Makes the sets.
        alpha: Allowed share of rows whose label is outside.
        guarantee: What holds, in words.
        feasible: Whether there are rows enough for every threshold to be finite.
        coverage: The middle and the 95 % range of the true coverage over draws of so many rows, as
            theory has it if no two rows are equally strange; of the rarest class, if `per_class`.
        per_class: Names of the classes with the rows and the range of each; empty if not.
        sizes: On the rows that the thresholds were found on.
        rows: Their number.
    """

    rule: SetRule
    alpha: float
    guarantee: str
    feasible: bool
    coverage: Interval
    per_class: tuple[tuple[str, int, Interval], ...]
    sizes: SetSizes
    rows: int


@dataclass(frozen=True)
class SetCheck:
    """How prediction sets did on rows that had no say in them.

    Attributes:
        coverage: Share of labels inside, with its exact 95 % interval.
        per_class: The same for the rows of each class; NaN where there is none.
        sizes: Of the sets.
        rows: Rows.
    """

    coverage: Interval
    per_class: tuple[Interval, ...]
    sizes: SetSizes
    rows: int


def conformal_sets(
    calibration: Predictions,
    alpha: float,
    *,
    method: SetMethod = DEFAULT_METHOD,
    per_class: bool = False,
) -> ConformalSets:
    """Prediction sets that hold the label with probability `1 - alpha` or more.

    Args:
        calibration: Labelled rows that played no part in the fit.
        alpha: Allowed share of rows whose label is outside.
        method: `LAC()`, `APS()` or `RAPS()`.
        per_class: One threshold a class, from the rows of that class alone: the promise then holds
            for the rows of each class (Mondrian; Vovk 2012, https://arxiv.org/abs/1209.2673).

    Raises:
        ConfigError: If alpha is not between 0 and 1.
        DataError: If there are no labels, or no rows.
    """
    check_open("alpha", alpha)
    labels = labels_of(calibration)
    own = strangeness(method, calibration)[np.arange(len(labels)), labels]
    classes = calibration.probabilities.shape[1]
    groups = [own[labels == c] for c in range(classes)] if per_class else [own]
    limits = tuple(conformal_quantile(group, alpha) for group in groups)
    feasible = all(math.isfinite(limit) for limit in limits)
    promise = promised(groups, alpha, per_class=per_class, names=calibration.names)
    rule = SetRule(method, limits, promise)
    ranges = [coverage_range(len(group), alpha) for group in groups]
    smallest = min(range(len(groups)), key=lambda c: len(groups[c]))
    each = zip(calibration.names, map(len, groups), ranges, strict=True) if per_class else ()
    return ConformalSets(
        rule=rule,
        alpha=alpha,
        guarantee=promise,
        feasible=feasible,
        coverage=ranges[smallest],
        per_class=tuple(each),
        sizes=sizes_of(members(rule, calibration)),
        rows=len(calibration),
    )


def check_sets(conformal: ConformalSets, predictions: Predictions) -> SetCheck:
    """Coverage and sizes of the sets on labelled rows that had no say in them.

    Raises:
        DataError: If there are no labels, or no rows.
        ConfigError: If there are other classes.
    """
    labels, inside = labels_of(predictions), members(conformal.rule, predictions)
    covered = inside[np.arange(len(labels)), labels]
    groups = [covered[labels == c] for c in range(inside.shape[1])]
    return SetCheck(
        coverage=share_interval(int(covered.sum()), len(covered)),
        per_class=tuple(share_interval(int(group.sum()), len(group)) for group in groups),
        sizes=sizes_of(inside),
        rows=len(covered),
    )


def conformal_quantile(strange: Floats, alpha: float) -> float:
    """The `ceil((n + 1)(1 - alpha))`-th smallest of `n`; infinite where `n` is too small."""
    rank = conformal_rank(len(strange), alpha)
    return math.inf if rank > len(strange) else float(np.sort(strange)[rank - 1])


def conformal_rank(rows: int, alpha: float) -> int:
    """`ceil((n + 1)(1 - alpha))`, unmoved by the last digits of `alpha`."""
    return rows + 1 - math.floor((rows + 1) * alpha + 1e-9)


def rows_for_sets(alpha: float) -> int:
    """The fewest rows with a finite threshold: `ceil(1 / alpha) - 1`."""
    return math.ceil(1.0 / alpha - 1e-9) - 1


def coverage_range(rows: int, alpha: float) -> Interval:
    """Median and 95 % range of the true coverage over draws of so many rows."""
    from scipy.stats import beta

    rank = conformal_rank(rows, alpha)
    if rank > rows:
        return Interval(1.0, 1.0, 1.0)
    middle, low, high = (float(beta.ppf(p, rank, rows + 1 - rank)) for p in (0.5, 0.025, 0.975))
    return Interval(middle, low, high)


def promised(groups: list[Floats], alpha: float, *, per_class: bool, names: tuple[str, ...]) -> str:
    """The promise in words, and which classes have too few rows for a threshold."""
    rows = sum(map(len, groups))
    whose = "a new row of each class" if per_class else "a new row from the same distribution"
    promise = (
        f"The set of {whose} holds its label with probability {percent(1 - alpha)} or more, over "
        f"the draw of the row and of the {rows} labelled ones."
    )
    needed = rows_for_sets(alpha)
    few = [names[c] if per_class else "" for c, group in enumerate(groups) if len(group) < needed]
    if not few:
        return promise
    if not per_class:
        return (
            f"{promise} It holds only because every set has every class: {rows} rows are too few, "
            f"at least {needed} are needed."
        )
    return (
        f"{promise} Of {', '.join(few)} there are too few rows, so that every set holds them: at "
        f"least {needed} a class are needed."
    )


def labels_of(predictions: Predictions) -> NDArray[np.int64]:
    """The labels `(N,)`.

    Raises:
        DataError: If there are none, or no rows.
    """
    if predictions.labels is None or len(predictions) == 0:
        raise DataError(
            "Prediction sets need labelled rows, and these predictions have no labels. Name the "
            "column of the labels."
        )
    return predictions.labels


def strangeness(method: SetMethod, predictions: Predictions) -> Floats:
    """Of every class of every row, `(N, C)`."""
    found: Floats = method.strangeness(torch.from_numpy(predictions.probabilities)).numpy()
    return found


def members(rule: SetRule, predictions: Predictions) -> NDArray[np.bool_]:
    """Which classes are in the set of each row, `(N, C)`."""
    found: NDArray[np.bool_] = rule.sets(torch.from_numpy(predictions.probabilities)).numpy()
    return found


def sizes_of(inside: NDArray[np.bool_]) -> SetSizes:
    """Sizes of sets `(N, C)`."""
    sizes = inside.sum(axis=1)
    counts = np.bincount(sizes, minlength=inside.shape[1] + 1)
    return SetSizes(float(sizes.mean()), tuple(int(count) for count in counts))
