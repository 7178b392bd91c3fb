"""Groups of rows by a column: which are badly served, which are badly calibrated."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from posthoc_bhpeft.audit.metrics import Interval, negative_log_likelihood
from posthoc_bhpeft.audit.predictions import Predictions
from posthoc_bhpeft.audit.slices.grouping import Group, group_values
from posthoc_bhpeft.audit.slices.significance import (
    Correction,
    accuracy_p_value,
    adjust,
    calibration_p_value,
    check_level,
    gap_interval,
    wilson,
)
from posthoc_bhpeft.audit.words import points
from posthoc_bhpeft.errors import ConfigError, DataError

PREDICTED, TRUE, LENGTH = "predicted class", "true class", "text length (words)"
"""Groupings that need no column."""

OF_THE_LABEL = "The column goes with the label, so calibration was not tested."
_MOST_CLASSES = 50
# Share of a group's rows that may be of the other kind where a column is said to tell the label.
_SLIPS = 0.01


@dataclass(frozen=True)
class Slice:
    """One group, beside all other rows.

    Attributes:
        column: What rows were grouped by.
        value: The group.
        rows: Its rows.
        accuracy: With its interval (Wilson, 1927).
        confidence: Mean probability of the predicted class.
        gap: `confidence - accuracy` with its interval; above 0 is over-confident. `None` where
            groups are made by the label, for then it means nothing.
        nll: Mean, in nats.
        p_accuracy: Of the test that its accuracy is that of the other rows, adjusted.
        p_calibration: Of the test that it is calibrated, adjusted; `None` with `gap`.
        finding: What is wrong with it, in words; empty where nothing is shown.
        others_accuracy: Of all rows outside the group.
        note: What to know when reading it, in words; mostly empty.
    """

    column: str
    value: str
    rows: int
    accuracy: Interval
    confidence: float
    gap: Interval | None
    nll: float
    p_accuracy: float
    p_calibration: float | None
    finding: str
    others_accuracy: float = float("nan")
    note: str = ""

    @property
    def of_label(self) -> bool:
        """Whether the label makes the group, so that nobody knows it when an answer is given."""
        return self.gap is None


@dataclass(frozen=True)
class _Grouping:
    """One way to group all rows; `by_label` where the label decides the group."""

    name: str
    groups: tuple[Group, ...]
    by_label: bool = False


def slices(
    predictions: Predictions,
    columns: Sequence[str] | None = None,
    *,
    min_rows: int = 20,
    level: float = 0.95,
    correction: Correction | str = Correction.HOLM,
    outcomes: Collection[str] | None = None,
    most: int = 10,
) -> tuple[Slice, ...]:
    """Accuracy and calibration of every group of every column, the worst first.

    Accuracy is tested against all other rows by Fisher's exact test, calibration by the exact
    Poisson-binomial distribution of the number right. All p-values of one call are adjusted
    together, and a finding is what stays below `1 - level`. Groups with a finding come first; then
    the higher NLL. Rows are taken to be independent of each other.

    Args:
        predictions: N labelled rows.
        columns: Names of columns, and of `PREDICTED`, `TRUE` and `LENGTH`; `None` is all there are.
        min_rows: Smaller groups are joined to the other values, or left out.
        level: Coverage of the intervals, and one less the chance of a false finding.
        correction: Holm bounds the chance of even one false finding; Benjamini-Hochberg the
            expected share of false ones, and finds more.
        outcomes: Columns known only with the label, such as the reason of a complaint. Their
            calibration is not tested. `None` finds those that tell the label or follow from it.
        most: Groups of a column at most, besides other and missing values.

    Raises:
        DataError: If there are no labels, or no such column.
        ConfigError: If a setting is out of range.
    """
    _check(predictions, min_rows, most)
    check_level(level)
    adjust([], correction)
    names = _names(predictions) if columns is None else tuple(columns)
    found: list[Slice] = []
    for name in names:
        grouping = _grouping(predictions, name, min_rows, most, outcomes)
        found += _measure_all(predictions, grouping, level)
    adjusted = [_explained(one, level) for one in _adjusted(found, correction)]
    return tuple(sorted(adjusted, key=lambda one: (not one.finding, -one.nll)))


def _check(predictions: Predictions, min_rows: int, most: int) -> None:
    if predictions.labels is None:
        raise DataError(
            "Slices need to know which predictions are right, and these have no labels. Give "
            "labels, or compare the rows with a reference: drift(now, reference) needs none."
        )
    if min_rows < 2 or most < 2:
        raise ConfigError(f"min_rows is {min_rows} and most is {most}; both must be 2 or more.")


def _names(predictions: Predictions) -> tuple[str, ...]:
    built_in = (PREDICTED, TRUE) if predictions.texts is None else (PREDICTED, TRUE, LENGTH)
    return (*predictions.columns, *(name for name in built_in if name not in predictions.columns))


def _grouping(
    predictions: Predictions,
    name: str,
    min_rows: int,
    most: int,
    outcomes: Collection[str] | None,
) -> _Grouping:
    if name not in _names(predictions):
        known = ", ".join(repr(one) for one in _names(predictions))
        raise DataError(f"There is no column {name!r} to slice by; there are {known}.")
    if name in predictions.columns:
        groups = group_values(predictions.columns[name], most=most, smallest=min_rows)
        assert predictions.labels is not None
        by_label = (
            goes_with_label(groups, predictions.labels) if outcomes is None else name in outcomes
        )
        return _Grouping(name, groups, by_label)
    if name == LENGTH:
        words = [len(text.split()) for text in predictions.texts or ()]
        return _Grouping(name, group_values(words, most=most, smallest=min_rows))
    classes = predictions.predicted if name == PREDICTED else predictions.labels
    named = [predictions.names[c] for c in classes] if classes is not None else []
    groups = _by_class(named, min_rows)
    return _Grouping(name, groups, by_label=name == TRUE)


def _by_class(named: Sequence[str], min_rows: int) -> tuple[Group, ...]:
    """A group for each class; a name that reads as a number or a date is still a name."""
    marked = [f"class {name}" for name in named]
    groups = group_values(marked, most=_MOST_CLASSES, smallest=min_rows)
    return tuple(replace(one, name=one.name.removeprefix("class ")) for one in groups)


def goes_with_label(groups: Sequence[Group], labels: NDArray[np.int64]) -> bool:
    """Whether a column tells the label or follows from it, so that it may be known only after it.

    It tells a class if every group is of that class alone or without it, both kinds being there;
    it follows from the label if no class is in two groups. One row in a hundred may differ.

    Args:
        groups: Two or more, or the answer is no.
        labels: `(N,)`.
    """
    classes = np.unique(labels)
    table = np.array([[(labels[g.rows] == c).sum() for c in classes] for g in groups])
    if len(groups) < 2 or len(classes) < 2:
        return False
    share = table / table.sum(axis=1, keepdims=True)
    all_of, none_of = share >= 1.0 - _SLIPS, share <= _SLIPS
    tells = (all_of | none_of).all(axis=0) & all_of.any(axis=0) & none_of.any(axis=0)
    seen = table[:, table.any(axis=0)]
    follows = seen.max(axis=0) >= (1.0 - _SLIPS) * seen.sum(axis=0)
    # With as many groups as rows every class would be in one group.
    return bool(tells.any() or (follows.all() and (seen.sum(axis=0) > 1).any()))


def _measure_all(predictions: Predictions, grouping: _Grouping, level: float) -> Iterator[Slice]:
    for group in grouping.groups:
        if len(group) < len(predictions):
            yield _measure(predictions, grouping, group, level)


def _measure(predictions: Predictions, grouping: _Grouping, group: Group, level: float) -> Slice:
    """A slice with p-values that are not adjusted yet, and no finding."""
    assert predictions.labels is not None
    inside = np.zeros(len(predictions), dtype=bool)
    inside[group.rows] = True
    right, others = predictions.right[inside], predictions.right[~inside]
    confidence, by_label = predictions.confidence[inside], grouping.by_label
    return Slice(
        column=grouping.name,
        value=group.name,
        rows=len(group),
        accuracy=wilson(int(right.sum()), len(right), level),
        confidence=float(confidence.mean()),
        gap=None if by_label else gap_interval(confidence, right, level),
        nll=negative_log_likelihood(predictions.probabilities[inside], predictions.labels[inside]),
        p_accuracy=accuracy_p_value(right, others),
        p_calibration=None if by_label else calibration_p_value(confidence, right),
        finding="",
        others_accuracy=float(others.mean()),
        note=OF_THE_LABEL if by_label and grouping.name != TRUE else "",
    )


def _adjusted(found: Sequence[Slice], correction: Correction | str) -> list[Slice]:
    """All tests of all groups as one family."""
    calibration = [one.p_calibration for one in found]
    tested = [p for p in calibration if p is not None]
    p = adjust([one.p_accuracy for one in found] + tested, correction)
    rest = iter(p[len(found) :])
    return [
        replace(
            one,
            p_accuracy=float(accuracy),
            p_calibration=None if raw is None else float(next(rest)),
        )
        for one, accuracy, raw in zip(found, p, calibration, strict=False)
    ]


def _explained(one: Slice, level: float) -> Slice:
    """With the finding: a lower accuracy than the others', or a gap either way."""
    alpha, parts = 1.0 - level, []
    if one.p_accuracy < alpha and one.accuracy.estimate < one.others_accuracy:
        served, others = _percents(one.accuracy.estimate, one.others_accuracy)
        parts.append(f"badly served: {served} right, the others {others}")
    if one.gap is not None and one.p_calibration is not None and one.p_calibration < alpha:
        way = "over-confident" if one.gap.estimate > 0 else "under-confident"
        parts.append(f"{way} by {points(one.gap.estimate)}")
    return replace(one, finding="; ".join(parts))


def _percents(one: float, other: float) -> tuple[str, str]:
    """Two shares in per cent, with a decimal where they would read the same."""
    short = f"{100 * one:.0f} %", f"{100 * other:.0f} %"
    return short if short[0] != short[1] else (f"{100 * one:.1f} %", f"{100 * other:.1f} %")
