"""What an audit found, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from posthoc_bhpeft.audit.metrics import Interval
from posthoc_bhpeft.audit.metrics.catalogue import DETECTION, METRICS, Metric
from posthoc_bhpeft.audit.regression.figures import REGRESSION
from posthoc_bhpeft.audit.regression.result import RegressionAudit
from posthoc_bhpeft.audit.reporting import verdict
from posthoc_bhpeft.audit.result import Audit
from posthoc_bhpeft.audit.words import counted
from posthoc_bhpeft.cli.output import Output


def show(found: Audit | RegressionAudit, out: Output) -> None:
    """The verdict, the figures and the decisions, for a terminal."""
    if isinstance(found, RegressionAudit):
        numbers(found, out)
    else:
        classes(found, out)
    out.say(f"\n{verdict(found)}")


def classes(found: Audit, out: Output) -> None:
    """What was found about a model that chooses a class."""
    figures(found, METRICS, out)
    if found.subject.detection:
        names, rows = detection(found)
        out.table(f"AUROC, {counted(found.outside_rows, 'row')} from elsewhere", ["", *names], rows)
    for decision in found.decisions:
        out.say(f"{decision.goal}: {decision.guarantee}\n")
    if found.sets is not None:
        out.say(f"prediction sets: {found.sets.guarantee}\n")
    for one in found.slices:
        if one.finding:
            later = ", known only with the label" if one.of_label else ""
            out.say(f"{one.column} {one.value} ({counted(one.rows, 'row')}{later}): {one.finding}")
    if found.drift is not None:
        out.say(f"\nDrift: {found.drift.finding}")


def numbers(found: RegressionAudit, out: Output) -> None:
    """What was found about a regression."""
    figures(found, REGRESSION, out)
    for decision in found.decisions:
        out.say(f"{decision.goal}: {decision.guarantee}\n")
    if found.conformal is not None:
        out.say(f"conformal intervals: {found.conformal.guarantee}\n")
    for one in found.groups:
        if one.finding:
            out.say(f"{one.column} {one.value} ({counted(one.rows, 'row')}): {one.finding}")


def figures(found: Audit | RegressionAudit, catalogue: Sequence[Metric[Any]], out: Output) -> None:
    """A table of all figures of all models; nothing without labels."""
    models = (found.subject, *found.rivals)
    if not found.subject.figures:
        return
    rows = [
        [metric.title, *(interval_text(metric, model.figures[metric.name]) for model in models)]
        for metric in catalogue
        if metric.name in found.subject.figures
    ]
    out.table(heading(found), ["", *(model.name for model in models)], rows)


def detection(found: Audit) -> tuple[list[str], list[list[str]]]:
    """Models, and a row for each score: how well it tells rows from elsewhere."""
    models = [model for model in (found.subject, *found.rivals) if model.detection]
    rows = [
        [
            score,
            *(
                interval_text(DETECTION[0], m.detection[score]["auroc"])
                if score in m.detection
                else ""
                for m in models
            ),
        ]
        for score in found.subject.detection
    ]
    return [model.name for model in models], rows


def heading(found: Audit | RegressionAudit) -> str:
    """What was audited, and how many rows of it."""
    rows = counted(len(found.subject.predictions), "row")
    return f"{found.data}, {rows}" if found.data else rows


def interval_text(metric: Metric[Any], interval: Interval) -> str:
    """An estimate with its interval, short enough for two models beside each other."""
    parts = (interval.estimate, interval.low, interval.high)
    if metric.unit == "share":
        estimate, low, high = (f"{100 * part:.1f}" for part in parts)
        return f"{estimate} % [{low}, {high}]"
    estimate, low, high = (f"{part:.3f}" for part in parts)
    return f"{estimate} [{low}, {high}]"
