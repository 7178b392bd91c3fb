"""Groups of rows by a column: where predictions are worse, lean to one side, or are too sure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from posthoc_bhpeft.audit.arrays import Floats
from posthoc_bhpeft.audit.metrics import Interval
from posthoc_bhpeft.audit.metrics.bootstrap import check_level
from posthoc_bhpeft.audit.metrics.shares import share_interval
from posthoc_bhpeft.audit.regression.predictions import RealPredictions
from posthoc_bhpeft.audit.report.tables import digits_for
from posthoc_bhpeft.audit.slices import LENGTH, Correction
from posthoc_bhpeft.audit.slices.grouping import Group, group_values
from posthoc_bhpeft.audit.slices.significance import adjust
from posthoc_bhpeft.audit.words import number, percent
from posthoc_bhpeft.errors import ConfigError, DataError

PREDICTED = "predicted value"
"""A grouping that needs no column, beside `LENGTH`."""

OF_THE_TARGET = "The column goes with the target, so it was not tested."
# A column that leaves less of the targets' variance than this inside its groups tells the target.
_TELLS = 0.01
_COVERED = 0.90


@dataclass(frozen=True)
class RealGroup:
    """One group, beside all other rows.

    Attributes:
        column: What rows were grouped by.
        value: The group.
        rows: Its rows.
        rmse: Root mean squared error.
        others_rmse: Of all rows outside the group.
        bias: Mean of prediction less target, with its interval (Student's t); above 0 is too high.
        coverage: Share of targets in central 90 % intervals, with its exact interval.
        p_error: Of the test that its errors are as large as the others', adjusted; `None` where
            the column tells the target, as the two below.
        p_bias: Of the test that its mean error is 0, adjusted.
        p_coverage: Of the test that 90 % of its targets are inside, adjusted.
        finding: What is wrong with it, in words; empty where nothing is shown.
        note: What to know when reading it, in words; mostly empty.
    """

    column: str
    value: str
    rows: int
    rmse: float
    others_rmse: float
    bias: Interval
    coverage: Interval
    p_error: float | None
    p_bias: float | None
    p_coverage: float | None
    finding: str = ""
    note: str = ""


def groups(
    predictions: RealPredictions,
    columns: Sequence[str] | None = None,
    *,
    min_rows: int = 20,
    level: float = 0.95,
    correction: Correction | str = Correction.HOLM,
    most: int = 10,
) -> tuple[RealGroup, ...]:
    """Error, lean and coverage of every group of every column, those with a finding first.

    The size of errors is tested against all other rows by Mann and Whitney's rank test of
    `|error|`, the lean by Student's t test that the mean error is 0, the coverage of 90 % intervals
    by the exact binomial test. All p-values of one call are adjusted together, and a finding is
    what stays below `1 - level`. Rows are taken to be independent of each other.

    Args:
        predictions: With targets.
        columns: Names of columns, and of `PREDICTED` and `LENGTH`; `None` is all there are.
        min_rows: Smaller groups are joined to the other values, or left out.
        level: Coverage of the intervals, and one less the chance of a false finding.
        correction: See `slices`.
        most: Groups of a column at most, besides other and missing values.

    Raises:
        DataError: If there are no targets, or no such column.
        ConfigError: If a setting is out of range.
    """
    check_level(level)
    adjust([], correction)
    _ = predictions.known_targets
    if min_rows < 2 or most < 2:
        raise ConfigError(f"min_rows is {min_rows} and most is {most}; both must be 2 or more.")
    found: list[RealGroup] = []
    for name in names_of(predictions) if columns is None else columns:
        parts = group_values(values_of(predictions, name), most=most, smallest=min_rows)
        found += measured(predictions, name, parts, level)
    explained = [finding_of(one, level) for one in adjusted(found, correction)]
    return tuple(sorted(explained, key=lambda one: (not one.finding, -one.rmse)))


def names_of(predictions: RealPredictions) -> tuple[str, ...]:
    """Every column there is, and the groupings that need none."""
    built_in = (PREDICTED,) if predictions.texts is None else (PREDICTED, LENGTH)
    return (*predictions.columns, *(name for name in built_in if name not in predictions.columns))


def values_of(predictions: RealPredictions, name: str) -> Sequence[object]:
    """What rows are grouped by, `N` values.

    Raises:
        DataError: If there is no such column.
    """
    if name not in names_of(predictions):
        known = ", ".join(repr(one) for one in names_of(predictions))
        raise DataError(f"There is no column {name!r} to group by; there are {known}.")
    if name in predictions.columns:
        return predictions.columns[name]
    if name == LENGTH:
        return [len(text.split()) for text in predictions.texts or ()]
    values: list[float] = predictions.mean.tolist()
    return values


def measured(
    predictions: RealPredictions, name: str, parts: Sequence[Group], level: float
) -> Iterator[RealGroup]:
    """The groups of one column, with p-values that are not adjusted yet."""
    tested = name in (PREDICTED, LENGTH) or not tells_target(parts, predictions.known_targets)
    for part in parts:
        if 1 < len(part) < len(predictions):
            yield one_group(predictions, name, part, level, tested=tested)


def tells_target(parts: Sequence[Group], targets: Floats) -> bool:
    """Whether groups leave next to nothing of the targets' variance, as if made from the target.

    Args:
        parts: Two or more, or the answer is no.
        targets: `(N,)`.
    """
    inside = np.concatenate([part.rows for part in parts]) if parts else np.array([], dtype=int)
    if len(parts) < 2 or targets[inside].var() == 0.0:
        return False
    left = sum(len(part) * targets[part.rows].var() for part in parts)
    return bool(left < _TELLS * len(inside) * targets[inside].var())


def one_group(
    predictions: RealPredictions, name: str, part: Group, level: float, *, tested: bool
) -> RealGroup:
    """A group without a finding."""
    inside = np.zeros(len(predictions), dtype=bool)
    inside[part.rows] = True
    error, held = predictions.error, predictions.gaussians.inside(_COVERED)[inside]
    return RealGroup(
        column=name,
        value=part.name,
        rows=len(part),
        rmse=root_mean_square(error[inside]),
        others_rmse=root_mean_square(error[~inside]),
        bias=mean_interval(error[inside], level),
        coverage=share_interval(int(held.sum()), len(held), level),
        p_error=error_p_value(error, inside) if tested else None,
        p_bias=bias_p_value(error[inside]) if tested else None,
        p_coverage=coverage_p_value(int(held.sum()), len(held)) if tested else None,
        note="" if tested else OF_THE_TARGET,
    )


def root_mean_square(errors: Floats) -> float:
    """Of errors `(N,)`."""
    return float(np.sqrt((errors**2).mean()))


def mean_interval(errors: Floats, level: float) -> Interval:
    """Mean of errors `(N,)`, `N` of 2 or more, with Student's t interval."""
    from scipy.stats import t

    half = t.ppf(0.5 + level / 2.0, len(errors) - 1) * errors.std(ddof=1) / math.sqrt(len(errors))
    mean = float(errors.mean())
    return Interval(mean, mean - float(half), mean + float(half))


def error_p_value(errors: Floats, inside: NDArray[np.bool_]) -> float:
    """Mann and Whitney's test that `|error|` is as large inside a group as outside, two-sided."""
    from scipy.stats import mannwhitneyu

    sizes = np.abs(errors)
    return float(mannwhitneyu(sizes[inside], sizes[~inside]).pvalue)


def bias_p_value(errors: Floats) -> float:
    """Student's t test that the mean of errors `(N,)` is 0, two-sided; 1 where none differs."""
    from scipy.stats import ttest_1samp

    if np.ptp(errors) == 0.0:
        return 1.0 if errors[0] == 0.0 else 0.0
    return float(ttest_1samp(errors, 0.0).pvalue)


def coverage_p_value(held: int, rows: int) -> float:
    """Exact binomial test that 90 % intervals hold 90 % of the targets, two-sided."""
    from scipy.stats import binomtest

    return float(binomtest(held, rows, _COVERED).pvalue)


def adjusted(found: Sequence[RealGroup], correction: Correction | str) -> list[RealGroup]:
    """All tests of all groups as one family."""
    names = ("p_error", "p_bias", "p_coverage")
    raw = [(i, name, getattr(one, name)) for i, one in enumerate(found) for name in names]
    asked = [(i, name, p) for i, name, p in raw if p is not None]
    new: list[dict[str, float]] = [{} for _ in found]
    for (i, name, _), p in zip(asked, adjust([p for *_, p in asked], correction), strict=True):
        new[i][name] = float(p)
    return [replace(one, **p) for one, p in zip(found, new, strict=True)]  # type: ignore[arg-type]


def finding_of(one: RealGroup, level: float) -> RealGroup:
    """With the finding: larger errors than the others', a lean, or intervals that are off."""
    alpha, parts = 1.0 - level, []
    if one.p_error is not None and one.p_error < alpha and one.rmse > one.others_rmse:
        parts.append(f"badly served: RMSE {number(one.rmse)}, the others {number(one.others_rmse)}")
    if one.p_bias is not None and one.p_bias < alpha:
        way, size = "high" if one.bias.estimate > 0 else "low", abs(one.bias.estimate)
        parts.append(f"too {way} by {number(size, digits_for(size))} on average")
    if one.p_coverage is not None and one.p_coverage < alpha:
        way = "over-confident" if one.coverage.estimate < _COVERED else "under-confident"
        parts.append(f"{way}: {percent(one.coverage.estimate, 0)} inside 90 % intervals")
    return replace(one, finding="; ".join(parts))
