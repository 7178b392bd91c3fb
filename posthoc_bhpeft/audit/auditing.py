"""`audit`: the one call, for models that choose a class and for those that predict a number."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias, overload

from posthoc_bhpeft.audit.classes import Plan, Subject, audit_classes
from posthoc_bhpeft.audit.predictions import Predictions
from posthoc_bhpeft.audit.regression.auditing import RegressionPlan, audit_regression
from posthoc_bhpeft.audit.regression.predicting import RealSubject, is_regression
from posthoc_bhpeft.audit.regression.predictions import RealPredictions
from posthoc_bhpeft.audit.regression.result import RegressionAudit
from posthoc_bhpeft.audit.result import Audit
from posthoc_bhpeft.data import TextData
from posthoc_bhpeft.errors import ConfigError

Auditable: TypeAlias = Subject | RealSubject
"""What can be audited: something that predicts classes or numbers, or what it predicted."""
Further: TypeAlias = Iterable[Any] | Predictions | None
"""More rows: batches, or what the subject said about them."""


@overload
def audit(
    subject: Auditable, loader: Iterable[Any] | None = ..., *, rows: TextData | None = ...,
    rivals: Mapping[str, Auditable] | None = ..., outside: Further = ..., reference: Further = ...,
    name: str = ..., plan: Plan, progress: bool = ...,
) -> Audit: ...  # fmt: skip


@overload
def audit(
    subject: Auditable, loader: Iterable[Any] | None = ..., *, rows: TextData | None = ...,
    rivals: Mapping[str, Auditable] | None = ..., outside: None = ..., reference: None = ...,
    name: str = ..., plan: RegressionPlan, progress: bool = ...,
) -> RegressionAudit: ...  # fmt: skip


@overload
def audit(
    subject: Auditable, loader: Iterable[Any] | None = ..., *, rows: TextData | None = ...,
    rivals: Mapping[str, Auditable] | None = ..., outside: Further = ..., reference: Further = ...,
    name: str = ..., plan: Plan | RegressionPlan | None = ..., progress: bool = ...,
) -> Audit | RegressionAudit: ...  # fmt: skip


def audit(
    subject: Auditable,
    loader: Iterable[Any] | None = None,
    *,
    rows: TextData | None = None,
    rivals: Mapping[str, Auditable] | None = None,
    outside: Further = None,
    reference: Further = None,
    name: str = "",
    plan: Plan | RegressionPlan | None = None,
    progress: bool = True,
) -> Audit | RegressionAudit:
    """Measure a model before it may decide anything.

    ```python
    found = audit(bayes, test_loader, rivals=Contest(bayes, validation_loader).rivals(["map"]))
    write_report(found, "report")
    ```

    A `BayesianPeft` or a rival with a Gaussian likelihood, a transformers model whose
    configuration says so, and `RealPredictions` are regressions; all else chooses a class.

    Args:
        subject: A `BayesianPeft`, a fine-tuned model without posterior, a rival, or `Predictions`
            (of a regression `RealPredictions`) made anywhere. A regression without posterior
            needs its noise: `fit_noise(model, loader)`.
        loader: Held-out rows, which had no part in training: batches with labels. Not needed for
            predictions.
        rows: Texts and columns of the loader's rows, in order; a loader of `make_loader` has them.
        rivals: Others by name, for the same rows; see `Contest`.
        outside: Rows of another kind, to see whether doubt tells them apart; labels are not read.
        reference: Earlier held-out rows, to see what has changed since; with labels if known.
        name: Of the subject, for tables.
        plan: What to measure; by default `Plan()`, of a regression `RegressionPlan()`.
        progress: Show progress bars.

    Returns:
        Everything found; `write_report` makes a page of it.

    Raises:
        ConfigError: If something is no model and no predictions, there is no loader, or one that
            draws rows at random, a name is taken twice, nothing says how large the noise is, or
            settings contradict each other or are for the other kind of model.
        DataError: If there are no rows, a rival's rows or classes are not the subject's, rows hold
            something else than one class or one number, or there is no such score or column.
    """
    shared: dict[str, Any] = {"rows": rows, "rivals": rivals, "name": name, "progress": progress}
    if is_regression(subject):
        assert not isinstance(subject, Predictions), "these are of classes"
        check_rows_for_numbers(outside, reference)
        return audit_regression(subject, loader, plan=plan_for_numbers(plan), **shared)
    assert not isinstance(subject, RealPredictions), "these are of a regression"
    further: dict[str, Any] = {"outside": outside, "reference": reference}
    return audit_classes(subject, loader, plan=plan_for_classes(plan), **further, **shared)


def plan_for_numbers(plan: Plan | RegressionPlan | None) -> RegressionPlan | None:
    """The plan, if it is one for a regression.

    Raises:
        ConfigError: With what to pass instead.
    """
    if isinstance(plan, Plan):
        raise ConfigError(
            "This is a regression, and a Plan is for models that choose a class. Pass a "
            "RegressionPlan: tolerance, max_error, max_review, miss, levels, columns, resamples, "
            "level and seed."
        )
    return plan


def plan_for_classes(plan: Plan | RegressionPlan | None) -> Plan | None:
    """The plan, if it is one for a model that chooses a class.

    Raises:
        ConfigError: With what to pass instead.
    """
    if isinstance(plan, RegressionPlan):
        raise ConfigError(
            "A RegressionPlan is for a regression, and nothing says that this is one. Pass a Plan; "
            "or, if it predicts a number, a BayesianPeft with a Gaussian likelihood, "
            "fit_noise(model, loader), or RealPredictions."
        )
    return plan


def check_rows_for_numbers(outside: object, reference: object) -> None:
    """Raise where a regression is asked about rows that it is not compared with.

    Raises:
        ConfigError: With what to do instead.
    """
    given = {"outside=": outside, "reference=": reference}
    if names := [name for name, value in given.items() if value is not None]:
        raise ConfigError(
            f"This is a regression, and {' and '.join(names)} {'is' if len(names) == 1 else 'are'} "
            "for models that choose a class: of numbers, neither rows from elsewhere nor drift are "
            "looked at. Leave it out, and audit those rows on their own."
        )
