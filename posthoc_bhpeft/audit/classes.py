"""`audit_classes`: every measurement of a model that chooses a class, beside others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from posthoc_bhpeft.api import BayesianPeft
from posthoc_bhpeft.audit.decisions import Decision, at_most_errors, review_share
from posthoc_bhpeft.audit.decisions.conformal import ConformalSets, conformal_sets
from posthoc_bhpeft.audit.decisions.guarantees import check_open
from posthoc_bhpeft.audit.drift import Drift, drift
from posthoc_bhpeft.audit.metrics.bootstrap import check_level
from posthoc_bhpeft.audit.metrics.measuring import compare, detect, measure
from posthoc_bhpeft.audit.predicting import check_kind, described, predictions_of, rows_of
from posthoc_bhpeft.audit.predictions import CONFIDENCE, Predictions
from posthoc_bhpeft.audit.refusals import check_classes, check_columns, check_ours, check_rival
from posthoc_bhpeft.audit.result import Audit, Audited
from posthoc_bhpeft.audit.slices import Slice, slices
from posthoc_bhpeft.data import TextData
from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.review import SCORES
from posthoc_bhpeft.rivals import Rival

Subject = BayesianPeft | Rival | nn.Module | Predictions
"""What can be audited: something that predicts, or what it predicted."""


@dataclass(frozen=True)
class Plan:
    """What to measure of a model that chooses a class, and how surely.

    Attributes:
        score: Doubt that rows are ranked and decided by; rivals without it go by confidence.
        max_error: Promise at most this share of errors among automatic answers; `None` does not.
        max_review: Promise to send at most this share of rows to a human; `None` does not.
        sets: Prediction sets may miss the label this often; `None` makes none.
        columns: To slice by; `None` is all there are, an empty sequence none.
        time: Column that says when, for the drift.
        resamples: Of the bootstrap.
        level: Coverage of intervals, and probability of promises about errors.
        seed: Of everything random.

    Raises:
        ConfigError: If a share, the level or the number of resamples is out of range, or columns
            are one name and no list.
    """

    score: str = CONFIDENCE
    max_error: float | None = 0.05
    max_review: float | None = 0.10
    sets: float | None = 0.05
    columns: Sequence[str] | None = None
    time: str | None = None
    resamples: int = 1000
    level: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_error", "max_review", "sets"):
            if (value := getattr(self, name)) is not None:
                check_open(name, value)
        check_level(self.level)
        if self.resamples < 1:
            raise ConfigError(f"resamples is {self.resamples}, it must be 1 or more.")
        if isinstance(self.columns, str):
            raise ConfigError(
                f"columns is {self.columns!r}, it must be a list: columns=[{self.columns!r}]."
            )

    def generator(self) -> torch.Generator:
        """The same resamples for every measurement."""
        return torch.Generator().manual_seed(self.seed)


def audit_classes(
    subject: Subject,
    loader: Iterable[Any] | None = None,
    *,
    rows: TextData | None = None,
    rivals: Mapping[str, Subject] | None = None,
    outside: Iterable[Any] | Predictions | None = None,
    reference: Iterable[Any] | Predictions | None = None,
    name: str = "",
    plan: Plan | None = None,
    progress: bool = True,
) -> Audit:
    """Measure a model that chooses one class a row: `audit` where that is known.

    Args:
        subject: See `audit`; so are the other arguments.
        loader: Held-out rows.
        rows: Texts and columns of the loader's rows.
        rivals: Others by name.
        outside: Rows of another kind.
        reference: Earlier held-out rows.
        name: Of the subject.
        plan: What to measure.
        progress: Show progress bars.

    Raises:
        ConfigError: See `audit`.
        DataError: See `audit`.
    """
    plan = plan or Plan()
    rivals = {} if rivals is None else rivals
    for one in (subject, *rivals.values()):
        check_subject(one)
    name = name or name_of(subject)
    if name in rivals:
        raise ConfigError(
            f"The model under audit and a rival are both called {name!r}. Name one with name=, or "
            "by the key of rivals."
        )
    seen = Seen(loader, rows, progress)
    check_asked(plan, subject, seen, outside, reference)
    ours = seen.by(subject)
    check_ours(ours, plan.score, plan.columns)
    theirs = {}
    for rival, one in rivals.items():
        theirs[rival] = seen.by(one)
        check_rival(ours, theirs[rival], rival)
    strange = seen.outside(subject, outside)
    return Audit(
        subject=audited(name, ours, strange, plan),
        rivals=tuple(
            audited(rival, one, seen.outside(rivals[rival], loader_of(outside)), plan)
            for rival, one in theirs.items()
        ),
        differences={rival: difference(ours, one, plan) for rival, one in theirs.items()},
        decisions=decisions(ours, plan),
        sets=prediction_sets(ours, plan),
        slices=groups(ours, plan),
        drift=drifted(ours, seen.reference(subject, reference), plan),
        data=seen.source,
        outside_rows=0 if strange is None else len(strange),
        level=plan.level,
    )


@dataclass(frozen=True)
class Seen:
    """The rows of an audit, as every model is shown them."""

    loader: Iterable[Any] | None
    rows: TextData | None
    progress: bool

    def by(self, subject: Subject) -> Predictions:
        """What a subject says about the rows.

        Raises:
            ConfigError: If it has to predict and there is no loader.
        """
        if isinstance(subject, Predictions):
            return subject
        if self.loader is None:
            raise ConfigError("A model is audited on rows: pass a loader of held-out rows.")
        return predictions_of(subject, self.loader, self.rows, progress=self.progress)

    def outside(
        self, subject: Subject, other: Iterable[Any] | Predictions | None
    ) -> Predictions | None:
        """What it says about rows of another kind, whatever their labels mean."""
        if isinstance(other, Predictions):
            return replace(other, labels=None)
        if other is None or isinstance(subject, Predictions):
            return None
        return predictions_of(subject, other, labels=False, progress=self.progress)

    def reference(
        self, subject: Subject, other: Iterable[Any] | Predictions | None
    ) -> Predictions | None:
        """What it says about earlier rows."""
        if other is None or isinstance(other, Predictions) or isinstance(subject, Predictions):
            return other if isinstance(other, Predictions) else None
        return predictions_of(subject, other, progress=self.progress)

    def columns(self, subject: Subject) -> tuple[str, ...] | None:
        """Names of the rows' columns, where they are known before any pass."""
        rows = subject if isinstance(subject, Predictions) else self.rows or rows_of(self.loader)
        return None if rows is None else tuple(rows.columns)

    @property
    def source(self) -> str:
        """Where the rows came from; see `described`."""
        return described(self.rows or rows_of(self.loader))


def check_asked(
    plan: Plan, subject: Subject, seen: Seen, outside: Any = None, reference: Any = None
) -> None:
    """Raise where the audit cannot be what was asked for, before any pass.

    Raises:
        ConfigError: If a model is needed or a reference, or the score is none.
        DataError: If there is no such column.
    """
    if plan.time is not None and reference is None:
        raise ConfigError("time= is for the drift since a reference; pass reference= too.")
    for name, other in (("outside", outside), ("reference", reference)):
        made = other is None or isinstance(other, Predictions)
        if isinstance(subject, Predictions) and not made:
            raise ConfigError(
                f"The subject is predictions, so nothing can predict the rows of {name}=. Pass "
                "predictions there too, or audit the model."
            )
    if not isinstance(subject, Predictions) and plan.score not in SCORES:
        raise ConfigError(f"There is no score {plan.score!r}; a model has {', '.join(SCORES)}.")
    if (columns := seen.columns(subject)) is not None:
        check_columns(columns, plan.columns or (), plan.time)


def check_subject(subject: Any) -> None:
    """Raise where something neither predicts nor is predictions, or does not choose one class.

    Raises:
        ConfigError: With how to make either.
        DataError: If it says that it predicts something else.
    """
    # A rival is known by its method; a class has it too, and is not made yet.
    predicts = hasattr(subject, "predict_loader") and not isinstance(subject, type)
    if not predicts and not isinstance(subject, (nn.Module, Predictions)):
        raise ConfigError(
            f"A {type(subject).__name__} cannot be audited. Pass a BayesianPeft "
            "(BayesianPeft.from_pretrained(folder)), a model, a rival, or Predictions "
            "(read_predictions(file))."
        )
    check_kind(subject)


def loader_of(other: Iterable[Any] | Predictions | None) -> Iterable[Any] | None:
    """Rows that a rival too can be shown: predictions are those of the subject alone."""
    return None if isinstance(other, Predictions) else other


def name_of(subject: Subject) -> str:
    """What a subject is called where nobody has named it."""
    if isinstance(subject, BayesianPeft):
        return "ours"
    if isinstance(subject, Predictions):
        return "predictions"
    return "MAP" if isinstance(subject, nn.Module) else subject.name


def audited(name: str, ours: Predictions, outside: Predictions | None, plan: Plan) -> Audited:
    """One model, measured; without labels there is nothing to measure."""
    settings: dict[str, Any] = {"resamples": plan.resamples, "level": plan.level}
    figures = {}
    if ours.labels is not None:
        score = ranked_by(ours, plan.score)
        figures = dict(measure(ours, score=score, generator=plan.generator(), **settings))
    told = {}
    if outside is not None:
        check_classes(ours, outside, "outside=")
        told = dict(detect(ours, outside, generator=plan.generator(), **settings))
    return Audited(name, ours, figures, told)


def ranked_by(predictions: Predictions, score: str) -> str:
    """The score wanted, or confidence where there is none of it, or it is the same for all rows."""
    usable = score in predictions.score_names and np.ptp(predictions.score(score)) > 0
    return score if usable else CONFIDENCE


def difference(ours: Predictions, other: Predictions, plan: Plan) -> dict[str, Any]:
    """The subject's figures less a rival's, on the same resamples."""
    if ours.labels is None:
        return {}
    return dict(
        compare(
            ours,
            other,
            score=ranked_by(ours, plan.score),
            rival_score=ranked_by(other, plan.score),
            resamples=plan.resamples,
            level=plan.level,
            generator=plan.generator(),
        )
    )


def groups(ours: Predictions, plan: Plan) -> tuple[Slice, ...]:
    """Every group of rows that was asked for; without labels there is nothing to compare."""
    if ours.labels is None:
        return ()
    columns = None if plan.columns is None else tuple(dict.fromkeys(plan.columns))
    return slices(ours, columns, level=plan.level)


def decisions(ours: Predictions, plan: Plan) -> tuple[Decision, ...]:
    """The thresholds asked for; a promise about errors needs labels."""
    wanted: list[tuple[float | None, Callable[..., Decision]]] = [(plan.max_review, review_share)]
    if ours.labels is not None:
        wanted.insert(0, (plan.max_error, at_most_errors))
    return tuple(
        decide(ours, goal, score=plan.score, confidence=plan.level)
        for goal, decide in wanted
        if goal is not None
    )


def prediction_sets(ours: Predictions, plan: Plan) -> ConformalSets | None:
    """Sets that hold the label as often as asked for."""
    if plan.sets is None or ours.labels is None:
        return None
    return conformal_sets(ours, plan.sets)


def drifted(ours: Predictions, reference: Predictions | None, plan: Plan) -> Drift | None:
    """What has changed since the reference."""
    if reference is None:
        return None
    return drift(ours, reference, time=plan.time, level=plan.level, seed=plan.seed)
