"""`audit_regression`: every measurement of a regression, beside others on the same rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from posthoc_bhpeft.api import BayesianPeft
from posthoc_bhpeft.audit.decisions.guarantees import check_open
from posthoc_bhpeft.audit.metrics.bootstrap import Draws, check_level
from posthoc_bhpeft.audit.predicting import described, rows_of
from posthoc_bhpeft.audit.regression.conformal import conformal_intervals
from posthoc_bhpeft.audit.regression.coverage import LEVELS, coverage_at
from posthoc_bhpeft.audit.regression.decisions import (
    RealDecision,
    at_most_off,
    check_tolerance,
    review_least_sure,
)
from posthoc_bhpeft.audit.regression.figures import (
    check_same_rows,
    differences,
    draws_of,
    intervals,
)
from posthoc_bhpeft.audit.regression.groups import PREDICTED, groups
from posthoc_bhpeft.audit.regression.predicting import (
    RealSubject,
    check_subject,
    real_predictions_of,
)
from posthoc_bhpeft.audit.regression.predictions import RealPredictions
from posthoc_bhpeft.audit.regression.result import AuditedRegression, RegressionAudit
from posthoc_bhpeft.audit.slices import LENGTH
from posthoc_bhpeft.data import TextData
from posthoc_bhpeft.errors import ConfigError, DataError


@dataclass(frozen=True)
class RegressionPlan:
    """What to measure of a regression, and how surely.

    Attributes:
        tolerance: The largest error that does no harm, in the unit of the targets; without it
            nothing is said about whether errors are small enough.
        max_error: Promise that at most this share of the automatic predictions is off by more than
            the tolerance; needs one.
        max_review: Promise to send at most this share of rows to a human; `None` does not.
        miss: Conformal intervals may miss the target this often; `None` makes none.
        levels: Of the central intervals whose coverage is looked at.
        columns: To group by; `None` is all there are, an empty sequence none.
        resamples: Of the bootstrap.
        level: Coverage of intervals, and probability of promises.
        seed: Of everything random.

    Raises:
        ConfigError: If a share, a level, the tolerance or the number of resamples is out of range,
            or columns are one name and no list.
    """

    tolerance: float | None = None
    max_error: float = 0.05
    max_review: float | None = 0.10
    miss: float | None = 0.10
    levels: tuple[float, ...] = LEVELS
    columns: Sequence[str] | None = None
    resamples: int = 1000
    level: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_error", "max_review", "miss"):
            if (value := getattr(self, name)) is not None:
                check_open(name, value)
        for level in (self.level, *self.levels):
            check_level(level)
        if self.tolerance is not None:
            check_tolerance(self.tolerance)
        if self.resamples < 1:
            raise ConfigError(f"resamples is {self.resamples}, it must be 1 or more.")
        if isinstance(self.columns, str):
            raise ConfigError(
                f"columns is {self.columns!r}, it must be a list: columns=[{self.columns!r}]."
            )

    @property
    def sure(self) -> dict[str, Any]:
        """How surely a decision is made."""
        return {"confidence": self.level, "resamples": self.resamples, "seed": self.seed}


def audit_regression(
    subject: RealSubject,
    loader: Iterable[Any] | None = None,
    *,
    rows: TextData | None = None,
    rivals: Mapping[str, RealSubject] | None = None,
    name: str = "",
    plan: RegressionPlan | None = None,
    progress: bool = True,
) -> RegressionAudit:
    """Measure a model that predicts one number a row: `audit` where that is known.

    Args:
        subject: A `BayesianPeft` with a Gaussian likelihood, a rival, or `RealPredictions`.
        loader: Held-out rows, which had no part in training: batches with targets. Not needed for
            `RealPredictions`.
        rows: Texts and columns of the loader's rows, in order; a loader of `make_loader` has them.
        rivals: Others by name, for the same rows.
        name: Of the subject, for tables.
        plan: What to measure; `RegressionPlan()` by default.
        progress: Show progress bars.

    Raises:
        ConfigError: If something is no model and no predictions, nothing says how large the noise
            is, there is no loader, or one that draws rows at random, or a name is taken twice.
        DataError: If rivals' rows are not the subject's, these are class probabilities, or there
            is no such column.
    """
    plan = plan or RegressionPlan()
    rivals = {} if rivals is None else rivals
    for one in (subject, *rivals.values()):
        check_subject(one)
    name = name or name_of(subject)
    check_name(name, rivals)
    check_columns(plan, subject, rows or rows_of(loader))
    models = {
        key: real_predictions_of(one, loader, rows, progress=progress)
        for key, one in {name: subject, **rivals}.items()
    }
    ours, known = models[name], models[name].targets is not None
    if known:
        for rival in rivals:
            check_same_rows(ours, models[rival], rival)
    draws = {key: draws_of(one, plan.resamples, plan.seed) for key, one in models.items() if known}
    measured = {key: audited(key, one, draws.get(key), plan) for key, one in models.items()}
    return RegressionAudit(
        subject=measured[name],
        rivals=tuple(measured[rival] for rival in rivals),
        differences={
            rival: differences(draws[name], draws[rival], plan.level) for rival in rivals if known
        },
        decisions=decisions(ours, plan),
        conformal=conformal_intervals(ours, plan.miss) if known and plan.miss else None,
        groups=groups(ours, plan.columns, level=plan.level) if known else (),
        tolerance=plan.tolerance,
        data=described(rows or rows_of(loader)),
        level=plan.level,
    )


def audited(
    name: str,
    predictions: RealPredictions,
    draws: Mapping[str, Draws] | None,
    plan: RegressionPlan,
) -> AuditedRegression:
    """One model, measured; without targets there is nothing to measure."""
    if draws is None:
        return AuditedRegression(name, predictions)
    coverage = coverage_at(predictions, plan.levels, confidence=plan.level)
    return AuditedRegression(name, predictions, intervals(draws, plan.level), coverage)


def decisions(ours: RealPredictions, plan: RegressionPlan) -> tuple[RealDecision, ...]:
    """The thresholds asked for; where the deviation ranks no rows, there is none to review by."""
    found = []
    if plan.tolerance is not None and ours.targets is not None:
        found.append(at_most_off(ours, plan.tolerance, plan.max_error, **plan.sure))
    if plan.max_review is not None and ours.ranks:
        found.append(
            review_least_sure(ours, plan.max_review, tolerance=plan.tolerance, **plan.sure)
        )
    return tuple(found)


def name_of(subject: RealSubject) -> str:
    """What a subject is called where nobody has named it."""
    if isinstance(subject, BayesianPeft):
        return "ours"
    if isinstance(subject, RealPredictions):
        return "predictions"
    return "MAP" if isinstance(subject, nn.Module) else subject.name


def check_name(name: str, rivals: Mapping[str, Any]) -> None:
    """Raise where two models have the same name.

    Raises:
        ConfigError: If so.
    """
    if name in rivals:
        raise ConfigError(
            f"The model under audit and a rival are both called {name!r}. Name one with name=, or "
            "by the key of rivals."
        )


def check_columns(plan: RegressionPlan, subject: RealSubject, rows: TextData | None) -> None:
    """Raise where there is no such column, before any pass.

    Raises:
        DataError: With those there are.
    """
    if isinstance(subject, RealPredictions):
        there: Mapping[str, Any] = subject.columns
    elif rows is not None:
        there = rows.columns
    else:
        return
    for name in plan.columns or ():
        if name not in (*there, PREDICTED, LENGTH):
            known = ", ".join(there) or "none"
            raise DataError(f"There is no column {name!r}; the rows have {known}.")
