"""The figures of all models as rows of a table, with what can be said about differences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from posthoc_bhpeft.audit.metrics import Interval
from posthoc_bhpeft.audit.report.glossary import Term, term
from posthoc_bhpeft.audit.result import Audit
from posthoc_bhpeft.audit.words import bare, ends, value


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


def detection_rows(figures: Mapping[str, Mapping[str, Interval]]) -> tuple[list[Term], list[Row]]:
    """Metrics across, a row for each score that tells rows out of distribution."""
    across = [term(name) for name in next(iter(figures.values()), {})]
    found = [
        Row(Term(score, score), Cell("", ""), tuple((_cell(by[t.name], t), None) for t in across))
        for score, by in figures.items()
    ]
    return across, found


def judged(difference: Interval, one: Term) -> str:
    """Whether the subject is `better` or `worse` than a rival; empty where zero is inside."""
    if not difference.known or not difference.excludes(0.0) or one.better not in _SIGN:
        return ""
    return "better" if difference.estimate * _SIGN[one.better] > 0 else "worse"


_SIGN = {"higher": 1.0, "lower": -1.0}


def _row(audit: Audit, one: Term) -> Row:
    pairs = []
    for rival in audit.rivals:
        figure = rival.figures.get(one.name)
        difference = audit.differences.get(rival.name, {}).get(one.name)
        shown = None if difference is None else _difference(difference, one)
        pairs.append((None if figure is None else _cell(figure, one), shown))
    return Row(one, _cell(audit.subject.figures[one.name], one), tuple(pairs))


def _cell(figure: Interval, one: Term) -> Cell:
    if not figure.known:
        return Cell("–", "not defined here")
    return Cell(value(figure, share=one.share), ends(figure, share=one.share))


def _difference(figure: Interval, one: Term) -> Cell | None:
    if not figure.known:
        return None
    shown = bare(figure.estimate, share=one.share, signed=True)
    return Cell(shown, ends(figure, share=one.share, signed=True), judged(figure, one))
