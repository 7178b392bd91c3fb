"""Whether the rows are still those that a model was checked on, and what changed over time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from posthoc_bhpeft.audit.metrics import Interval


@dataclass(frozen=True)
class Period:
    """One stretch of time, or one part of a column in order.

    Attributes:
        name: Of the period.
        rows: In it.
        epistemic: Mean epistemic uncertainty in nats, or mean doubt where there is none.
        confidence: Mean probability of the predicted class, with its interval.
        accuracy: With its interval; `None` without labels.
    """

    name: str
    rows: int
    epistemic: Interval
    confidence: Interval
    accuracy: Interval | None


@dataclass(frozen=True)
class Drift:
    """Rows against a reference set.

    Attributes:
        rows: Rows of the set under audit.
        reference_rows: Rows of the reference.
        label_shift: p-value that the predicted classes are as frequent as in the reference.
        frequencies: Share of each class by name: in the reference, and now.
        covariate_shift: AUROC of telling the two sets apart, with its interval; 0.5 is none.
        uncertainty: Mean epistemic uncertainty now less in the reference, with its interval.
        periods: Over time, where a column says when.
        finding: What all this says, in words.
    """

    rows: int
    reference_rows: int
    label_shift: float
    frequencies: Mapping[str, tuple[float, float]]
    covariate_shift: Interval
    uncertainty: Interval
    periods: tuple[Period, ...]
    finding: str
