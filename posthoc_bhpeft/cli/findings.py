"""What an audit found, for a terminal."""

from __future__ import annotations

from typing import Any

from posthoc_bhpeft.audit.metrics import Interval
from posthoc_bhpeft.audit.metrics.catalogue import DETECTION, METRICS, Metric
from posthoc_bhpeft.audit.report import verdict
from posthoc_bhpeft.audit.result import Audit
from posthoc_bhpeft.audit.words import counted
from posthoc_bhpeft.cli.output import Output


def show(found: Audit, out: Output) -> None:
    """The verdict, the figures and the decisions, for a terminal."""
    models = (found.subject, *found.rivals)
    if found.subject.figures:
        rows = [
            [metric.title, *(interval_text(metric, model.figures[metric.name]) for model in models)]
            for metric in METRICS
            if metric.name in found.subject.figures
        ]
        out.table(heading(found), ["", *(model.name for model in models)], rows)
    if found.subject.detection:
        names, rows = detection(found)
        out.table(f"AUROC, {counted(found.outside_rows, 'row')} from elsewhere", ["", *names], rows)
    for decision in found.decisions:
        out.say(f"{decision.goal}: {decision.guarantee}\n")
    if found.sets is not None:
        out.say(f"prediction sets: {found.sets.guarantee}\n")
    for one in found.slices:
        if one.finding:
            out.say(f"{one.column} {one.value} ({one.rows} rows): {one.finding}")
    if found.drift is not None:
        out.say(f"\nDrift: {found.drift.finding}")
    out.say(f"\n{verdict(found)}")


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


def heading(found: Audit) -> str:
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
