"""What the columns of the report mean: the catalogue of metrics, by name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from posthoc_bhpeft.audit.metrics.catalogue import DETECTION, GAUSSIAN, METRICS, Metric
from posthoc_bhpeft.audit.result import Audit
from posthoc_bhpeft.audit.words import slug

HEADLINE = (
    "accuracy", "macro_f1", "nll", "brier", "ece", "smooth_ece", "aurc", "errors_removed_at_10",
    "gaussian_nll", "crps", "rmse", "interval_coverage",
)  # fmt: skip
"""The metrics that are shown at once; the others are folded."""


@dataclass(frozen=True)
class Term:
    """One metric as the page shows it.

    Attributes:
        name: Of the catalogue.
        title: For tables.
        definition: What it says; empty for a figure that the catalogue does not know.
        formula: For those who want it exact.
        better: `higher`, `lower`, `target` or empty.
        unit: Empty, or what stands behind the number.
        source: An address.
        target: The best value, where `better` says so.
    """

    name: str
    title: str
    definition: str = ""
    formula: str = ""
    better: str = ""
    unit: str = ""
    source: str = ""
    target: float | None = None

    @property
    def id(self) -> str:
        """Of its definition on the page."""
        return f"metric-{slug(self.name)}"

    @property
    def share(self) -> bool:
        """Whether it is shown in per cent."""
        return self.unit == "share"

    @property
    def arrow(self) -> str:
        """Which way is better."""
        return {"higher": "↑", "lower": "↓", "target": "→"}.get(self.better, "")

    @property
    def direction(self) -> str:
        """The same in words."""
        words = {"higher": "higher is better", "lower": "lower is better"}
        return words.get(self.better, f"best at {self.target}" if self.better else "")


def term(name: str) -> Term:
    """The term of that name, bare where the catalogue has none."""
    metric = _catalogue().get(name)
    if metric is None:
        return Term(name, name.replace("_", " "))
    return Term(
        name, metric.title, metric.definition, metric.formula, metric.better, metric.unit,
        metric.source, metric.target,
    )  # fmt: skip


def terms(audit: Audit) -> tuple[Term, ...]:
    """Every term that the report uses and the catalogue defines, in the order of the catalogue."""
    used = set(audit.subject.figures)
    for by_metric in audit.subject.detection.values():
        used |= set(by_metric)
    return tuple(term(name) for name in _catalogue() if name in used)


def ordered(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Names of the headline, and the others, each in the order of the catalogue."""
    given = list(names)
    order = {name: place for place, name in enumerate(_catalogue())}
    given.sort(key=lambda name: order.get(name, len(order)))
    first = [name for name in given if name in HEADLINE]
    return first or given, [name for name in given if first and name not in HEADLINE]


def _catalogue() -> dict[str, Metric[Any]]:
    """Every metric that is defined, by name, in order."""
    known: tuple[Metric[Any], ...] = (*METRICS, *DETECTION, *GAUSSIAN)
    return {metric.name: metric for metric in known}
