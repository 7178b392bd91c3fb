"""The figures of all models as rows of a table, with what can be said about differences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from posthoc_bhpeft.audit.metrics import Interval
from posthoc_bhpeft.audit.report.glossary import Term, term
from posthoc_bhpeft.audit.result import Audit
from posthoc_bhpeft.audit.words import ends, number, value

MOST_DIGITS = 12
ROUNDING = 10.0**-MOST_DIGITS
"""A difference that takes more decimals to show is no difference."""

Detection = Mapping[str, Mapping[str, Interval]]
"""Metrics of each score, by name."""


@dataclass(frozen=True)
class Cell:
    """A figure: its value, its interval, and whether it is clearly `better` or `worse`.

    Attributes:
        value: Of the estimate.
        ends: Of the interval.
        judgement: `better` or `worse` of the subject, where the interval excludes zero.
    """

    value: str
    ends: str
    judgement: str = ""


@dataclass(frozen=True)
class Row:
    """One metric of all models.

    Attributes:
        term: What it means.
        subject: Its figure.
        rivals: For each rival its figure and the difference, either of which may be missing.
    """

    term: Term
    subject: Cell
    rivals: tuple[tuple[Cell | None, Cell | None], ...]


def rows(audit: Audit, names: Iterable[str]) -> tuple[Row, ...]:
    """A row for each of these metrics."""
    return tuple(_row(audit, term(name)) for name in names)


@dataclass(frozen=True)
class Told:
    """How well one score of one model tells rows from elsewhere.

    Attributes:
        score: Its name.
        cells: A figure for each metric.
        best: Whether no score of any model has a higher AUROC.
    """

    score: str
    cells: tuple[Cell, ...]
    best: bool


def detection_terms(audit: Audit) -> tuple[Term, ...]:
    """The metrics of detection, across."""
    return tuple(term(name) for name in next(iter(audit.subject.detection.values())))


def detection_rows(audit: Audit) -> tuple[tuple[str, tuple[Told, ...]], ...]:
    """For each model the scores that tell rows from elsewhere, the subject first.

    A score that is the same for all rows tells nothing and is left out; so is one that tells
    exactly what the one before it tells, as the parts of a doubt that is not split do.
    """
    models = [model for model in (audit.subject, *audit.rivals) if model.detection]
    kept = {model.name: _telling(model.detection) for model in models}
    areas = [by["auroc"].estimate for found in kept.values() for by in found.values()]
    top = max(areas, default=1.0)
    across = detection_terms(audit)
    return tuple(
        (name, tuple(_told(score, by, across, top) for score, by in found.items()))
        for name, found in kept.items()
    )


def _told(score: str, by: Mapping[str, Interval], across: tuple[Term, ...], top: float) -> Told:
    cells = tuple(_cell(by[one.name], one) for one in across)
    return Told(score, cells, by["auroc"].estimate == top)


def _telling(figures: Detection) -> Detection:
    kept: dict[str, Mapping[str, Interval]] = {}
    for score, by in figures.items():
        one = by["auroc"]
        constant = one.estimate == one.low == one.high == 0.5
        if not constant and by not in kept.values():
            kept[score] = by
    return kept


def difference_cell(difference: Interval, one: Term) -> Cell | None:
    """The subject's figure less a rival's; `None` where it is not known.

    Where it is judged, with so many decimals that neither it nor an end looks like zero.
    """
    if not difference.known:
        return None
    judgement = judged(difference, one)
    scale, least = (100.0, 1) if one.share else (1.0, 3)
    values = [scale * v for v in (difference.estimate, difference.low, difference.high)]
    digits = digits_for(*values, least=least) if judgement else least
    shown, low, high = (number(v, digits, signed=True) for v in values)
    return Cell(shown, f"{low} to {high}", judgement)


def digits_for(*values: float, least: int = 3) -> int:
    """How many decimals show that none of these is zero; at most `MOST_DIGITS`."""
    able = (d for d in range(least, MOST_DIGITS) if all(round(v, d) != 0.0 for v in values))
    return next(able, MOST_DIGITS)


def judged(difference: Interval, one: Term) -> str:
    """Whether the subject is `better` or `worse` than a rival; empty where zero is inside.

    Empty too where a difference or an end of it is so small that it is rounding.
    """
    if not difference.known or not difference.excludes(0.0) or one.better not in _SIGN:
        return ""
    if min(abs(v) for v in (difference.estimate, difference.low, difference.high)) < ROUNDING:
        return ""
    return "better" if difference.estimate * _SIGN[one.better] > 0 else "worse"


_SIGN = {"higher": 1.0, "lower": -1.0}


def _row(audit: Audit, one: Term) -> Row:
    pairs = []
    for rival in audit.rivals:
        figure = rival.figures.get(one.name)
        difference = audit.differences.get(rival.name, {}).get(one.name)
        shown = None if difference is None else difference_cell(difference, one)
        pairs.append((None if figure is None else _cell(figure, one), shown))
    return Row(one, _cell(audit.subject.figures[one.name], one), tuple(pairs))


def _cell(figure: Interval, one: Term) -> Cell:
    if not figure.known:
        return Cell("–", "not defined here")
    return Cell(value(figure, share=one.share), ends(figure, share=one.share))
