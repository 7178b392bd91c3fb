"""The page: which sections an audit has, and the values each of them shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import metadata, resources
from typing import Any

from posthoc_bhpeft.audit import words
from posthoc_bhpeft.audit.report.classes import MOST_CLASSES, confusions, counts, per_class
from posthoc_bhpeft.audit.report.drawings import LETTERS, Drawing, drawings
from posthoc_bhpeft.audit.report.examples import galleries
from posthoc_bhpeft.audit.report.glossary import ordered, terms
from posthoc_bhpeft.audit.report.rules import Rules, to_review
from posthoc_bhpeft.audit.report.tables import detection_rows, detection_terms, rows
from posthoc_bhpeft.audit.report.verdict import HOW, class_verdict
from posthoc_bhpeft.audit.result import Audit

PACKAGE = "posthoc_bhpeft.audit.report"
DISTRIBUTION = "posthoc-bhpeft"


@dataclass(frozen=True)
class Made:
    """How a report came to be.

    Attributes:
        when: The time, with its zone.
        command: That made it; empty where it was not a command.
        version: Of this package.
    """

    when: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    command: str = ""
    version: str = field(default_factory=lambda: _version())


@dataclass(frozen=True)
class Section:
    """One part of the page.

    Attributes:
        id: Of its heading.
        title: In the heading and in the contents.
        template: Of its body, without the ending.
        values: For the template.
    """

    id: str
    title: str
    template: str
    values: Mapping[str, Any]


def page(
    audit: Audit, *, rules: Rules | None = None, made: Made | None = None,
    pictures: Mapping[str, Drawing] | None = None,
) -> str:  # fmt: skip
    """The report as one HTML document that loads nothing else.

    Args:
        audit: What was found.
        rules: Borders of the verdict; `None` is `Rules()` at the audit's level.
        made: When and how; `None` is now.
        pictures: From `drawings`, where they are at hand.

    Raises:
        ConfigError: If matplotlib is missing.
    """
    drawn = drawings(audit) if pictures is None else pictures
    svgs = {name: drawing.svg() for name, drawing in drawn.items()}
    return str(
        environment(PACKAGE, to_review=to_review)
        .get_template("page.html")
        .render(
            audit=audit,
            subject=audit.subject,
            predictions=audit.subject.predictions,
            verdict=class_verdict(audit, rules),
            how=HOW,
            sections=sections(audit, drawn),
            pictures=drawn,
            svgs=svgs,
            made=made or Made(),
            style=stylesheet(),
        )
    )


def sections(audit: Audit, pictures: Mapping[str, Drawing]) -> tuple[Section, ...]:
    """The sections that this audit has something to say in, in order."""
    found = (
        _figures(audit), _calibration(audit, pictures), _decisions(audit, pictures),
        _classes(audit), _uncertainty(pictures), _detection(audit), _examples(audit),
        _slices(audit), _drift(audit), _about(audit), _definitions(audit),
    )  # fmt: skip
    return tuple(section for section in found if section is not None)


def _figures(audit: Audit) -> Section | None:
    if not audit.subject.figures:
        return None
    first, others = ordered(audit.subject.figures)
    values = {"first": rows(audit, first), "others": rows(audit, others)}
    return Section("figures", "The figures", "figures", values)


def _calibration(audit: Audit, pictures: Mapping[str, Drawing]) -> Section:
    rivals = [name for name in pictures if name.startswith("reliability-")]
    beside = ["reliability", *rivals] if len(rivals) == 1 else ["reliability"]
    shown = [name for name in (*beside, "confidence") if name in pictures]
    folded = rivals if len(rivals) > 1 else []
    values = {"shown": shown, "folded": folded}
    title = "Calibration" if "reliability" in pictures else "Confidence"
    return Section("calibration", title, "calibration", values)


def _decisions(audit: Audit, pictures: Mapping[str, Drawing]) -> Section | None:
    if not audit.decisions and audit.sets is None and "risk_coverage" not in pictures:
        return None
    lettered = list(zip(LETTERS, audit.decisions, strict=False))
    return Section("decisions", "Which answers go to a person", "decisions", {"lettered": lettered})


def _classes(audit: Audit) -> Section | None:
    predictions = audit.subject.predictions
    if predictions.labels is None:
        return None
    table = counts(predictions)
    values = {
        "matrix": table if len(table) <= MOST_CLASSES else None,
        "names": predictions.names,
        "confusions": confusions(table, predictions.names),
        "per_class": per_class(table, predictions.names),
    }
    return Section("classes", "What is taken for what", "classes", values)


def _uncertainty(pictures: Mapping[str, Drawing]) -> Section | None:
    if "uncertainty" not in pictures:
        return None
    return Section("uncertainty", "Where the doubt comes from", "uncertainty", {})


def _detection(audit: Audit) -> Section | None:
    if not audit.subject.detection:
        return None
    inside = len(audit.subject.predictions)
    values = {
        "across": detection_terms(audit),
        "models": detection_rows(audit),
        "chance": audit.outside_rows / (inside + audit.outside_rows),
    }
    return Section("detection", "Rows from elsewhere", "detection", values)


def _examples(audit: Audit) -> Section:
    values = {"galleries": galleries(audit.subject.predictions)}
    return Section("examples", "Rows worth reading", "examples", values)


def _slices(audit: Audit) -> Section | None:
    if not audit.slices:
        return None
    found = [group for group in audit.slices if group.finding]
    others = [group for group in audit.slices if not group.finding]
    return Section("slices", "Groups of rows", "slices", {"found": found, "others": others})


def _drift(audit: Audit) -> Section | None:
    if audit.drift is None:
        return None
    moved = sorted(audit.drift.frequencies.items(), key=lambda item: -abs(item[1][1] - item[1][0]))
    return Section("drift", "Drift", "drift", {"drift": audit.drift, "moved": moved})


def _about(audit: Audit) -> Section:
    return Section("about", "How it was made", "about", {})


def _definitions(audit: Audit) -> Section | None:
    known = terms(audit)
    return Section("definitions", "What the figures mean", "definitions", {"terms": known}) if (
        known
    ) else None  # fmt: skip


def environment(*packages: str, **names: Any) -> Any:
    """Templates of packages, the first that has one: everything escaped, nothing undefined.

    Args:
        packages: Each with a folder `templates`.
        names: For every template.
    """
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=ChoiceLoader([PackageLoader(package) for package in packages]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals |= {"infinity": float("inf"), **names}
    made.filters |= {
        name: getattr(words, name)
        for name in ("between", "counted", "ends", "number", "p_value", "percent", "value")
    }
    return made


def stylesheet() -> str:
    """The look of every report."""
    return (resources.files(PACKAGE) / "templates" / "report.css").read_text(encoding="utf-8")


def _version() -> str:
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "unknown"
