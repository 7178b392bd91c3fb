"""`RegressionAudit`: everything that was found about a regression, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from posthoc_bhpeft.audit.metrics import Interval
from posthoc_bhpeft.audit.regression.conformal import ConformalIntervals
from posthoc_bhpeft.audit.regression.coverage import Coverage
from posthoc_bhpeft.audit.regression.decisions import RealDecision
from posthoc_bhpeft.audit.regression.groups import RealGroup
from posthoc_bhpeft.audit.regression.predictions import RealPredictions
from posthoc_bhpeft.audit.result import plain

CARD_METRICS = ("rmse", "r2", "gaussian_nll", "crps", "interval_coverage")
NOTHING = "–"


@dataclass(frozen=True)
class AuditedRegression:
    """One model, measured.

    Attributes:
        name: For tables.
        predictions: What it said.
        figures: Each figure of `REGRESSION` with its bootstrap interval, by name; empty without
            targets.
        coverage: Of central intervals, by level; empty without targets.
    """

    name: str
    predictions: RealPredictions
    figures: Mapping[str, Interval] = field(default_factory=dict)
    coverage: tuple[Coverage, ...] = ()


@dataclass(frozen=True)
class RegressionAudit:
    """The evidence about one regression, beside others on the same rows.

    Attributes:
        subject: The model under audit.
        rivals: Others, on the same rows, by the same figures.
        differences: The subject's figure less the rival's, by rival and figure, paired.
        decisions: Thresholds on the predicted deviation and what they cost.
        conformal: Intervals with a promise.
        groups: Every group of every column asked for, those with a finding first.
        tolerance: The largest error that does no harm, where one was given.
        data: What was audited: source and split; empty where nobody knows.
        level: Coverage of every interval, and probability of promises.
    """

    subject: AuditedRegression
    rivals: tuple[AuditedRegression, ...] = ()
    differences: Mapping[str, Mapping[str, Interval]] = field(default_factory=dict)
    decisions: tuple[RealDecision, ...] = ()
    conformal: ConformalIntervals | None = None
    groups: tuple[RealGroup, ...] = ()
    tolerance: float | None = None
    data: str = ""
    level: float = 0.95

    def to_dict(self) -> dict[str, Any]:
        """Every figure as JSON data, without the rows themselves; as `Audit.to_dict`."""
        models = [self.subject, *self.rivals]
        content = {
            "data": self.data,
            "rows": len(self.subject.predictions),
            "level": self.level,
            "subject": self.subject.name,
            "about": self.subject.predictions.about,
            "tolerance": self.tolerance,
            "figures": {model.name: _intervals(model.figures) for model in models},
            "coverage": {model.name: [asdict(c) for c in model.coverage] for model in models},
            "differences": {name: _intervals(found) for name, found in self.differences.items()},
            "decisions": [asdict(decision) for decision in self.decisions],
            "conformal": None if self.conformal is None else asdict(self.conformal),
            "groups": [asdict(one) for one in self.groups],
        }
        found: dict[str, Any] = plain(content)
        return found

    def card_row(self, metrics: tuple[str, ...] = CARD_METRICS) -> str:
        """A Markdown table of one row for a model card: data, rows, and figures with intervals."""
        known = self.subject.figures
        figures = {name: known[name] for name in metrics if name in known}
        cells = [f"{f.estimate:.3f} ({f.low:.3f} to {f.high:.3f})" for f in figures.values()]
        data = self.data.replace("|", "\\|").replace("\n", " ") or NOTHING
        header = ["data", "rows", *figures]
        row = [data, str(len(self.subject.predictions)), *cells]
        lines = [header, ["---"] * len(header), row]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _intervals(figures: Mapping[str, Interval]) -> dict[str, dict[str, float]]:
    return {name: asdict(found) for name, found in figures.items()}
