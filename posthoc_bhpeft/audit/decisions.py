"""Which answers go to a human: thresholds with a guarantee, and what they cost."""

from __future__ import annotations

from dataclasses import dataclass

from posthoc_bhpeft.audit.metrics import Interval


@dataclass(frozen=True)
class Decision:
    """A threshold on a score: rows above it go to a human, the others are answered.

    Attributes:
        goal: What was asked for, in words: "at most 5 % of the automatic answers wrong".
        score: Name of the score, as in `Predictions.score`.
        threshold: Rows with a larger score are reviewed; infinite where none needs to be.
        guarantee: What holds, for which rows, with which probability, in words.
        feasible: Whether the goal can be promised from so many rows.
        reviewed: Share of rows reviewed, with its interval.
        error_rate: Of the automatic answers, with its interval.
        error_rate_before: Of all answers.
        rows: Labelled rows that the threshold was found on.
    """

    goal: str
    score: str
    threshold: float
    guarantee: str
    feasible: bool
    reviewed: Interval
    error_rate: Interval
    error_rate_before: float
    rows: int
