"""`Audit`: everything that was found, as values; the report and `audit.json` are made of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from posthoc_bhpeft.audit.decisions import Decision
from posthoc_bhpeft.audit.decisions.conformal import ConformalSets
from posthoc_bhpeft.audit.drift import Drift
from posthoc_bhpeft.audit.metrics import Interval
from posthoc_bhpeft.audit.predictions import Predictions
from posthoc_bhpeft.audit.slices import Slice

CARD_METRICS = ("accuracy", "nll", "ece", "brier", "aurc")
NOTHING = "–"


@dataclass(frozen=True)
class Audited:
    """One model, measured.

    Attributes:
        name: For tables.
        predictions: What it said.
        figures: Each metric of the catalogue with its interval, by name.
        detection: For rows out of distribution: AUROC, AUPR and FPR95 of each score, by name.
    """

    name: str
    predictions: Predictions
    figures: Mapping[str, Interval]
    detection: Mapping[str, Mapping[str, Interval]] = field(default_factory=dict)


@dataclass(frozen=True)
class Audit:
    """The evidence about one model, beside others on the same rows.

    Attributes:
        subject: The model under audit.
        rivals: Others, on the same rows, by the same metrics.
        differences: The subject's figure less the rival's, by rival and metric, paired.
        decisions: Thresholds and what they cost.
        slices: Every group of every column asked for, the worst first.
        drift: Against a reference set, where one is given.
        sets: Conformal prediction sets, and what they cost.
        data: What was audited: source and split; empty where nobody knows.
        outside_rows: Rows of another kind that detection was measured on.
        level: Coverage of every interval, and probability of promises about errors.
    """

    subject: Audited
    rivals: tuple[Audited, ...] = ()
    differences: Mapping[str, Mapping[str, Interval]] = field(default_factory=dict)
    decisions: tuple[Decision, ...] = ()
    slices: tuple[Slice, ...] = ()
    drift: Drift | None = None
    sets: ConformalSets | None = None
    data: str = ""
    outside_rows: int = 0
    level: float = 0.95

    def to_dict(self) -> dict[str, Any]:
        """Every figure as JSON data, without the rows themselves.

        What is not known (NaN) is `null`; a limit that is none is `"Infinity"` or `"-Infinity"`,
        which `float` reads.
        """
        models = [self.subject, *self.rivals]
        content = {
            "data": self.data,
            "rows": len(self.subject.predictions),
            "level": self.level,
            "outside_rows": self.outside_rows,
            "subject": self.subject.name,
            "about": self.subject.predictions.about,
            "figures": {model.name: _intervals(model.figures) for model in models},
            "detection": {
                model.name: {score: _intervals(found) for score, found in model.detection.items()}
                for model in models
                if model.detection
            },
            "differences": {name: _intervals(found) for name, found in self.differences.items()},
            "decisions": [asdict(decision) for decision in self.decisions],
            "sets": None if self.sets is None else _sets(self.sets),
            "slices": [asdict(one) for one in self.slices],
            "drift": None if self.drift is None else asdict(self.drift),
        }
        found: dict[str, Any] = plain(content)
        return found

    def card_row(self, metrics: tuple[str, ...] = CARD_METRICS) -> str:
        """A Markdown table of one row for a model card: data, rows, and figures with intervals."""
        known = self.subject.figures
        figures = {name: known[name] for name in metrics if name in known}
        header = ["data", "rows", *figures]
        cells = [f"{f.estimate:.3f} ({f.low:.3f} to {f.high:.3f})" for f in figures.values()]
        data = self.data.replace("|", "\\|").replace("\n", " ") or NOTHING
        row = [data, str(len(self.subject.predictions)), *cells]
        lines = [header, ["---"] * len(header), row]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _sets(sets: ConformalSets) -> dict[str, Any]:
    """The sets with the name and the settings of their method."""
    return {**asdict(sets), "rule": {**asdict(sets.rule), "method": repr(sets.rule.method)}}


def _intervals(figures: Mapping[str, Interval]) -> dict[str, dict[str, float]]:
    return {name: asdict(found) for name, found in figures.items()}


def plain(value: Any) -> Any:
    """As JSON knows it: tuples are lists, keys strings, and NaN and infinities are no numbers."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str | int) or value is None:
        return value
    tolist = getattr(value, "tolist", None)
    return plain(tolist()) if tolist is not None else str(value)
