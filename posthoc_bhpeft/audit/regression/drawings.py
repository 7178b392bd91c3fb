"""The pictures of a regression's report, each with the words that go with it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from posthoc_bhpeft.audit.regression.plots import (
    deviation_plot,
    error_coverage_plot,
    error_left,
    interval_plot,
    pit_counts,
    pit_plot,
    rmse_by_deviation,
    share_inside,
)
from posthoc_bhpeft.audit.regression.result import RegressionAudit
from posthoc_bhpeft.audit.report.drawings import LETTERS, MODELS, MOST_POINTS, Drawing
from posthoc_bhpeft.audit.words import number, percent


def real_drawings(audit: RegressionAudit) -> dict[str, Drawing]:
    """Every picture that can be drawn of an audit, by name; none without targets."""
    if not audit.subject.figures:
        return {}
    return {drawing.name: drawing for drawing in _all(audit)}


def _all(audit: RegressionAudit) -> Iterator[Drawing]:
    yield _intervals(audit)
    yield _pit(audit)
    if audit.subject.predictions.ranks:
        yield _deviation(audit)
        yield _error_left(audit)


def _intervals(audit: RegressionAudit) -> Drawing:
    models = {m.name: m.predictions for m in (audit.subject, *audit.rivals)[: len(MODELS)]}
    share = share_inside(audit.subject.predictions)
    said = ", ".join(f"{percent(share[k - 1])} of those of {k} %" for k in (50, 80, 90, 95))
    return Drawing(
        name="intervals",
        title="Do its intervals hold what they say?",
        caption="On the dashed line an interval holds as many targets as it says; below it "
        f"intervals are too narrow. The band is the {percent(audit.level, 0)} interval at each "
        f"level for {audit.subject.name}.",
        text=f"Targets inside the intervals of {audit.subject.name}: {said}.",
        draw=lambda title: interval_plot(models, level=audit.level, title=title, colours=MODELS),
    )


def _pit(audit: RegressionAudit) -> Drawing:
    model = audit.subject.predictions
    shares = pit_counts(model) / len(model)
    outer = float(shares[0] + shares[-1])
    return Drawing(
        name="pit",
        title="Where targets lie in what was predicted",
        caption="Even bars are honest; high at both ends means too sure, high in the middle too "
        "unsure, and a slope that predictions lean to one side. Inside the band it may be chance.",
        text=f"{percent(float(shares[0]))} of the targets lie in the lowest tenth of what was "
        f"predicted and {percent(float(shares[-1]))} in the highest, {percent(outer)} in both; "
        f"{percent(0.2, 0)} would be even.",
        draw=lambda title: pit_plot(model, level=audit.level, title=title),
    )


def _deviation(audit: RegressionAudit) -> Drawing:
    model = audit.subject.predictions
    said, found = rmse_by_deviation(model)
    thinned = " Only some rows are drawn." if len(model) > MOST_POINTS else ""
    return Drawing(
        name="deviation",
        title="Is it further off where it says so?",
        caption="Each point joined by the line is a group of rows of like deviation; it should "
        f"rise along the dashed line.{thinned}",
        text=f"Where the predicted deviation is {number(said[0])} the RMSE is {number(found[0])}, "
        f"where it is {number(said[-1])} it is {number(found[-1])}.",
        draw=lambda title: deviation_plot(model, most=MOST_POINTS, title=title),
    )


def marks(audit: RegressionAudit) -> dict[str, float]:
    """Share of rows kept by each decision that can be promised, by its letter."""
    deviation = audit.subject.predictions.deviation
    return {
        letter: float((deviation <= one.threshold).mean())
        for letter, one in zip(LETTERS, audit.decisions, strict=False)
        if one.feasible and math.isfinite(one.threshold)
    }


def _error_left(audit: RegressionAudit) -> Drawing:
    models = {m.name: m.predictions for m in (audit.subject, *audit.rivals)[: len(MODELS)]}
    _, error = error_left(audit.subject.predictions)
    rows = len(error)
    said = ", ".join(
        f"{number(error[max(0, round(kept * rows) - 1)])} of the surest {percent(kept, 0)}"
        for kept in (0.9, 0.8, 0.5)
    )
    pointed = marks(audit)
    letters = " Letters are the thresholds of the table." if pointed else ""
    return Drawing(
        name="error_left",
        title="Error left when the least sure rows go to a person",
        caption="From right to left ever more rows are handed over; the faster a curve falls, the "
        f"better its deviation finds the errors.{letters}",
        text=f"{audit.subject.name}: RMSE {number(float(np.asarray(error)[-1]))} of all rows, "
        f"{said}.",
        draw=lambda title: error_coverage_plot(models, marks=pointed, title=title, colours=MODELS),
    )
