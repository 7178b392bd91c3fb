"""`Audit`: everything that was found, as values; the report and `audit.json` are made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from posthoc_bhpeft.audit.decisions import Decision
from posthoc_bhpeft.audit.drift import Drift
from posthoc_bhpeft.audit.metrics import Interval
from posthoc_bhpeft.audit.predictions import Predictions
from posthoc_bhpeft.audit.slices import Slice


@dataclass(frozen=True)
class Audited:
    """One model, measured.

    Attributes:
        name: For tables.
        predictions: What it said.
        figures: Each metric of the catalogue with its bootstrap interval, by name.
        detection: For rows out of distribution: AUROC, AUPR and FPR95 of each score, by name.
    """

    name: str
    predictions: Predictions
    figures: Mapping[str, Interval]
    detection: Mapping[str, Mapping[str, Interval]] = field(default_factory=dict)


@dataclass(frozen=True)
class Audit:
    """The evidence about one model, beside others on the same rows.

    Attributes:
        subject: The model under audit.
        rivals: Others, on the same rows, by the same metrics.
        differences: The subject's figure less the rival's, by rival and metric, paired.
        decisions: Thresholds and what they cost.
        slices: Every group of every column asked for, the worst first.
        drift: Against a reference set, where one is given.
        data: What was audited: source, split, rows.
    """

    subject: Audited
    rivals: tuple[Audited, ...] = ()
    differences: Mapping[str, Mapping[str, Interval]] = field(default_factory=dict)
    decisions: tuple[Decision, ...] = ()
    slices: tuple[Slice, ...] = ()
    drift: Drift | None = None
    data: str = ""
