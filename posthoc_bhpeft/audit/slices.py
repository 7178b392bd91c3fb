"""Groups of rows by a column: which are badly served, which are badly calibrated."""

from __future__ import annotations

from dataclasses import dataclass

from posthoc_bhpeft.audit.metrics import Interval


@dataclass(frozen=True)
class Slice:
    """One group, beside all other rows.

    Attributes:
        column: What rows were grouped by.
        value: The group.
        rows: Its rows.
        accuracy: With its interval.
        confidence: Mean probability of the predicted class.
        gap: `confidence - accuracy` with its interval; above 0 is over-confident.
        nll: Mean, in nats.
        p_accuracy: Of the test that its accuracy is that of the other rows, adjusted.
        p_calibration: Of the test that it is calibrated, adjusted.
        finding: What is wrong with it, in words; empty where nothing is shown.
    """

    column: str
    value: str
    rows: int
    accuracy: Interval
    confidence: float
    gap: Interval
    nll: float
    p_accuracy: float
    p_calibration: float
    finding: str
