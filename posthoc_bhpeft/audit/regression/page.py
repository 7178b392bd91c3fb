"""The page about a regression: in the look of the report on classes, with sections of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from posthoc_bhpeft.audit import words
from posthoc_bhpeft.audit.metrics import Interval
from posthoc_bhpeft.audit.metrics.catalogue import Metric
from posthoc_bhpeft.audit.regression.drawings import real_drawings
from posthoc_bhpeft.audit.regression.examples import real_galleries
from posthoc_bhpeft.audit.regression.figures import HEADLINE, REGRESSION
from posthoc_bhpeft.audit.regression.result import RegressionAudit
from posthoc_bhpeft.audit.regression.verdict import HOW, real_verdict, which
from posthoc_bhpeft.audit.report import Made, Rules
from posthoc_bhpeft.audit.report.drawings import LETTERS, Drawing
from posthoc_bhpeft.audit.report.glossary import Term
from posthoc_bhpeft.audit.report.page import PACKAGE, Section, environment, stylesheet
from posthoc_bhpeft.audit.report.tables import Cell, Row, difference_cell
from posthoc_bhpeft.audit.report.writing import drawn, write_files

OWN = "posthoc_bhpeft.audit.regression"


def write_regression_report(
    audit: RegressionAudit,
    place: str | Path,
    *,
    rules: Rules | None = None,
    made: Made | None = None,
) -> None:
    """`write_report` of an audit of a regression."""
    pictures = real_drawings(audit)
    text = regression_page(audit, rules=rules, made=made, pictures=pictures)
    write_files(place, text, drawn(pictures))


def regression_page(
    audit: RegressionAudit,
    *,
    rules: Rules | None = None,
    made: Made | None = None,
    pictures: Mapping[str, Drawing] | None = None,
) -> str:
    """The report as one HTML document that loads nothing else.

    Args:
        audit: What was found.
        rules: Borders of the verdict; `None` is `Rules()` at the audit's level.
        made: When and how; `None` is now.
        pictures: From `real_drawings`, where they are at hand.

    Raises:
        ConfigError: If matplotlib is missing.
    """
    shown = real_drawings(audit) if pictures is None else pictures
    templates = environment(OWN, PACKAGE, which=which)
    return str(
        templates.get_template("regression.html").render(
            audit=audit,
            subject=audit.subject,
            predictions=audit.subject.predictions,
            verdict=real_verdict(audit, rules),
            how=HOW,
            sections=sections(audit, shown),
            pictures=shown,
            svgs={name: drawing.svg() for name, drawing in shown.items()},
            made=made or Made(),
            style=stylesheet(),
        )
    )


def sections(audit: RegressionAudit, pictures: Mapping[str, Drawing]) -> tuple[Section, ...]:
    """The sections that this audit has something to say in, in order."""
    found: list[Section] = []

    def add(key: str, title: str, template: str, **values: Any) -> None:
        found.append(Section(key, title, template, values))

    if audit.subject.figures:
        first, others = rows(audit, HEADLINE), rows(audit, folded())
        add("figures", "The figures", "figures", first=first, others=others)
        add("calibration", "Can its intervals be believed", "intervals", models=models(audit))
    if audit.decisions or "error_left" in pictures:
        lettered = list(zip(LETTERS, audit.decisions, strict=False))
        add("decisions", "Which rows go to a person", "review", lettered=lettered)
    add("doubt", "Where the doubt comes from", "doubt", share=epistemic_share(audit))
    if audit.subject.predictions.texts is not None or audit.subject.figures:
        add("examples", "Rows worth reading", "rows",
            galleries=real_galleries(audit.subject.predictions))  # fmt: skip
    if audit.groups:
        bad = [group for group in audit.groups if group.finding]
        good = [group for group in audit.groups if not group.finding]
        add("slices", "Groups of rows", "groups", found=bad, others=good)
    add("about", "How it was made", "about")
    if audit.subject.figures:
        add("definitions", "What the figures mean", "definitions", terms=terms())
    return tuple(found)


def models(audit: RegressionAudit) -> tuple[Any, ...]:
    """Every model that was measured, the subject first."""
    return (audit.subject, *audit.rivals)


def epistemic_share(audit: RegressionAudit) -> float:
    """Share of all predicted variance that is epistemic."""
    said = audit.subject.predictions
    return float(said.epistemic.sum() / said.variance.sum())


def terms() -> tuple[Term, ...]:
    """What every figure means."""
    return tuple(term(metric) for metric in REGRESSION)


def folded() -> tuple[str, ...]:
    """Figures that are not shown at once."""
    return tuple(metric.name for metric in REGRESSION if metric.name not in HEADLINE)


def term(metric: Metric[Any]) -> Term:
    """A metric as the page shows it; narrow intervals alone are no good."""
    better = "" if metric.name == "interval_width" else metric.better
    return Term(
        metric.name, metric.title, metric.definition, metric.formula, better, metric.unit,
        metric.source, metric.target,
    )  # fmt: skip


def rows(audit: RegressionAudit, names: Iterable[str]) -> tuple[Row, ...]:
    """A row of the table for each of these figures."""
    known = {one.name: one for one in terms()}
    return tuple(row(audit, known[name]) for name in names)


def row(audit: RegressionAudit, one: Term) -> Row:
    """One figure of all models, with its differences."""
    pairs = tuple(
        (cell(rival.figures[one.name], one), difference(audit, rival.name, one))
        for rival in audit.rivals
    )
    return Row(one, cell(audit.subject.figures[one.name], one), pairs)


def cell(figure: Interval, one: Term) -> Cell:
    """A figure with its interval."""
    if not figure.known:
        return Cell("–", "not defined here")
    return Cell(words.value(figure, share=one.share), words.ends(figure, share=one.share))


def difference(audit: RegressionAudit, rival: str, one: Term) -> Cell | None:
    """The subject's figure less a rival's, and whether that is clearly better."""
    return difference_cell(audit.differences[rival][one.name], one)
