"""The pictures of a report: each is drawn once, for the page and for its own file."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

import numpy as np

from posthoc_bhpeft.audit.metrics import reliability, risk_coverage
from posthoc_bhpeft.audit.plots import (
    confidence_histogram,
    periods_plot,
    reliability_diagram,
    risk_coverage_plot,
    slices_plot,
    uncertainty_plot,
)
from posthoc_bhpeft.audit.predictions import CONFIDENCE
from posthoc_bhpeft.audit.result import Audit, Audited
from posthoc_bhpeft.audit.words import counted, number, percent, slug

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The subject is blue in every picture. Vermilion means wrong, so no model is drawn in it.
MODELS = ("#0072B2", "#009E73", "#E69F00", "#CC79A7")
MOST_POINTS = 700
MOST_GROUPS = 18
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

# What stands for the ink of a picture, so that it follows the page into the dark and onto paper.
_PAINT = {
    "#222222": "currentColor",
    "#666666": "var(--soft)",
    "#e4e4e4": "var(--grid)",
    "#ffffff": "var(--card)",
    "#0072b2": "var(--blue)",
    "#d55e00": "var(--vermilion)",
    "#009e73": "var(--green)",
    "#e69f00": "var(--amber)",
    "#cc79a7": "var(--pink)",
}
_PAINTED = re.compile("|".join(_PAINT), re.IGNORECASE)
_SIZE = (4.7, 3.7)


@dataclass(frozen=True)
class Drawing:
    """A picture with the words that go with it.

    Attributes:
        name: Of the file, and of the ids on the page.
        title: Above it.
        caption: How to read it, in a sentence.
        text: What it shows, for those who cannot see it.
        draw: Draws it with a title inside, or without one if that is empty.
    """

    name: str
    title: str
    caption: str
    text: str
    draw: Callable[[str], Figure]

    def svg(self) -> str:
        """The picture for the page: no title, colours that follow the page, ids of its own."""
        import matplotlib

        written = StringIO()
        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": self.name}):
            figure = self.draw("")
            figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
        return inline(written.getvalue(), slug("chart", self.name), self.title, self.text)


def inline(svg: str, prefix: str, title: str, text: str) -> str:
    """An SVG file as a part of a page.

    Args:
        svg: As matplotlib writes it, text as text.
        prefix: Put before every id, so that no two pictures share one.
        title: Its name for screen readers.
        text: Its description for them.
    """
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.DOTALL)
    body = re.sub(r"<style.*?</style>\s*", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', body)
    body = re.sub(r'(?:xlink:)?href="#([^"]+)"', rf'href="#{prefix}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", body)
    body = re.sub(r"font-family: [^;]+; ?", "", body)
    body = _PAINTED.sub(lambda found: _PAINT[found.group().lower()], body)
    box = re.search(r'viewBox="[^"]+"', body)
    assert box is not None, "matplotlib writes a viewBox"
    labels = f'aria-labelledby="{prefix}-title" aria-describedby="{prefix}-text"'
    head = (
        f'<svg {box.group()} role="img" {labels}>'
        f'<title id="{prefix}-title">{escape(title)}</title>'
        f'<desc id="{prefix}-text">{escape(text)}</desc>'
    )
    return head + re.sub(r"\s*\n\s*", "\n", body[body.index(">") + 1 :])


def drawings(audit: Audit) -> dict[str, Drawing]:
    """Every picture that can be drawn of an audit, by name."""
    return {drawing.name: drawing for drawing in _all(audit)}


def _all(audit: Audit) -> Iterator[Drawing]:
    predictions = audit.subject.predictions
    if predictions.labels is not None:
        yield _reliability("reliability", audit.subject, MODELS[0], audit.level)
        for place, rival in enumerate(audit.rivals):
            colour = MODELS[1 + place % (len(MODELS) - 1)]
            name = slug("reliability", str(place + 1), rival.name)
            yield _reliability(name, rival, colour, audit.level)
        yield _risk_coverage(audit)
    yield _confidence(audit.subject)
    if {"aleatoric", "epistemic"} <= set(predictions.scores) and predictions.scores[
        "epistemic"
    ].any():
        yield _uncertainty(audit.subject)
    if audit.slices:
        yield _slices(audit)
    if audit.drift is not None and audit.drift.periods:
        yield _periods(audit)


def _reliability(name: str, model: Audited, colour: str, level: float) -> Drawing:
    p, y = model.predictions.probabilities, model.predictions.labels
    assert y is not None
    found = reliability(p, y, int(np.clip(len(p) // 40, 4, 15)), equal_mass=True, level=level)
    inside = int(((found.low <= found.confidence) & (found.confidence <= found.high)).sum())
    above = int((found.accuracy < found.confidence).sum())
    worst = int(np.abs(found.accuracy - found.confidence).argmax())
    return Drawing(
        name=name,
        title=f"Is {model.name} as sure as it is right?",
        caption="On the dashed line it is right as often as it says; a point below it means too "
        f"sure, and where the bar ({percent(level, 0)} interval) crosses the line, chance may be "
        "all there is.",
        text=f"{counted(len(found.counts), 'point')}, each of about equally many rows. In {inside} "
        f"the interval holds the confidence; in {above} accuracy is below confidence. The largest "
        f"gap is where confidence is {percent(found.confidence[worst])} and accuracy "
        f"{percent(found.accuracy[worst])}.",
        draw=lambda title: reliability_diagram(
            {model.name: p}, y, title=title, level=level, counts=False, colours=(colour,)
        ),
    )


def _confidence(model: Audited) -> Drawing:
    p, y = model.predictions.probabilities, model.predictions.labels
    sure = model.predictions.confidence
    text = f"Confidence has median {percent(float(np.median(sure)))}; "
    text += f"{percent(float((sure > 0.9).mean()))} of the rows are above {percent(0.9, 0)}."
    if y is not None and not model.predictions.right.all():
        wrong = sure[~model.predictions.right]
        text += f" Of the wrong ones it is {percent(float((wrong > 0.9).mean()))}."
    return Drawing(
        name="confidence",
        title="How sure it is",
        caption="Wrong answers should gather on the left; those far to the right are mistakes it "
        "was sure of." if y is not None
        else "The further to the right, the surer it is; without labels nothing says whether "
        "rightly so.",
        text=text,
        draw=lambda title: confidence_histogram(p, y, title=title, size=_SIZE),
    )  # fmt: skip


def ranked_by(audit: Audit) -> str:
    """The score by which the rows are handed over: that of the decisions, else confidence."""
    return audit.decisions[0].score if audit.decisions else CONFIDENCE


def marks(audit: Audit) -> dict[str, float]:
    """Share of rows kept by each decision that can be promised, by its letter."""
    letters = zip(LETTERS, audit.decisions, strict=False)
    by = ranked_by(audit)
    return {
        letter: 1.0 - float((audit.subject.predictions.score(by) > decision.threshold).mean())
        for letter, decision in letters
        if decision.feasible and decision.score == by and math.isfinite(decision.threshold)
    }


def _risk_coverage(audit: Audit) -> Drawing:
    models = (audit.subject, *audit.rivals)[: len(MODELS)]
    y = audit.subject.predictions.labels
    assert y is not None
    by = ranked_by(audit)
    scores = {
        model.name: model.predictions.score(by)
        for model in models
        if by in model.predictions.score_names
    }
    curve = risk_coverage(audit.subject.predictions.probabilities, y, scores[audit.subject.name])
    risks = [curve.risk[max(0, round(kept * len(y)) - 1)] for kept in (1.0, 0.9, 0.8, 0.5)]
    said = ", ".join(
        f"{percent(r)} of the {share} % most certain"
        for r, share in zip(risks[1:], (90, 80, 50), strict=True)
    )
    pointed = marks(audit)
    letters = " Letters are the thresholds of the table." if pointed else ""
    return Drawing(
        name="risk_coverage",
        title="Errors left when the least certain rows go to a person",
        caption="From right to left ever more rows are handed over; the faster a curve falls, the "
        f"better its doubt finds the errors.{letters}",
        text=f"{audit.subject.name}: {percent(risks[0])} of all answers are wrong, {said}.",
        draw=lambda title: risk_coverage_plot(
            {model.name: model.predictions.probabilities for model in models}, y, scores,
            title=title, marks=pointed, size=_SIZE, colours=MODELS,
        ),
    )  # fmt: skip


def _uncertainty(model: Audited) -> Drawing:
    predictions = model.predictions
    aleatoric, epistemic = predictions.scores["aleatoric"], predictions.scores["epistemic"]
    right = None if predictions.labels is None else predictions.right
    share = float(epistemic.sum() / max(float((aleatoric + epistemic).sum()), 1e-300))
    text = f"Of all doubt {percent(share)} is epistemic."
    if right is not None and right.any() and not right.all():
        means = [number(float(epistemic[which].mean())) for which in (right, ~right)]
        text += f" Its mean is {means[0]} nats where it is right and {means[1]} where it is wrong."
    thinned = len(predictions) > MOST_POINTS
    shown = " Only some rows are drawn, wrong and right thinned alike." if thinned else ""
    return Drawing(
        name="uncertainty",
        title="Doubt in the data, doubt in the weights",
        caption="To the right are rows that are ambiguous in themselves, high up those that the "
        f"model has not learnt yet: more training rows like these would help.{shown}",
        text=text,
        draw=lambda title: uncertainty_plot(
            aleatoric, epistemic, right, title=title, most=MOST_POINTS, size=_SIZE
        ),
    )


def _slices(audit: Audit) -> Drawing:
    shown = audit.slices[:MOST_GROUPS]
    right = audit.subject.predictions.right
    found = sum(bool(group.finding) for group in audit.slices)
    more = f" The first {len(shown)} of {len(audit.slices)} groups." if len(audit.slices) > len(
        shown
    ) else ""  # fmt: skip
    return Drawing(
        name="slices",
        title="How often it is right, by group",
        caption=f"Each line is the {percent(audit.level, 0)} interval of a group's accuracy, the "
        f"dashed line the accuracy of all rows; diamonds have a finding.{more}",
        text=f"{counted(found, 'group')} of {len(audit.slices)} with a finding; the table below "
        "has the figures.",
        draw=lambda title: slices_plot(
            shown, overall=float(right.mean()), title=title, width=_SIZE[0]
        ),
    )


def _periods(audit: Audit) -> Drawing:
    assert audit.drift is not None
    periods = audit.drift.periods
    first, last = periods[0], periods[-1]
    return Drawing(
        name="periods",
        title="Doubt, confidence and accuracy over time",
        caption=f"Bands are {percent(audit.level, 0)} intervals; doubt that rises while accuracy "
        "falls says that the world has moved away from the training rows.",
        text=f"From {first.name} to {last.name} mean doubt goes from "
        f"{number(first.epistemic.estimate)} to {number(last.epistemic.estimate)} nats and mean "
        f"confidence from {percent(first.confidence.estimate)} to "
        f"{percent(last.confidence.estimate)}.",
        draw=lambda title: periods_plot(periods, title=title, size=(_SIZE[0], 4.6)),
    )
