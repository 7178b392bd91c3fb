"""An audit for people: a verdict in words, and a page with its pictures."""

from __future__ import annotations

from posthoc_bhpeft.audit.report.page import Made, page
from posthoc_bhpeft.audit.report.rules import Check, Rules
from posthoc_bhpeft.audit.report.verdict import (
    NOT_YET,
    READY,
    REVIEW,
    UNCLEAR,
    Verdict,
    class_verdict,
)
from posthoc_bhpeft.audit.report.writing import PAGE, write_class_report

__all__ = [
    "NOT_YET",
    "PAGE",
    "READY",
    "REVIEW",
    "UNCLEAR",
    "Check",
    "Made",
    "Rules",
    "Verdict",
    "class_verdict",
    "page",
    "write_class_report",
]
