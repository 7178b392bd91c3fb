"""How often central intervals hold the target, beside how often they say they do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from posthoc_bhpeft.audit.metrics import Interval
from posthoc_bhpeft.audit.metrics.bootstrap import check_level
from posthoc_bhpeft.audit.metrics.gaussian import reach
from posthoc_bhpeft.audit.metrics.shares import share_interval
from posthoc_bhpeft.audit.regression.predictions import RealPredictions

LEVELS = (0.50, 0.80, 0.90, 0.95)


@dataclass(frozen=True)
class Coverage:
    """Central intervals of one level.

    Attributes:
        level: Share of the targets that they should hold.
        inside: Share that they hold, with its exact interval (Clopper and Pearson, 1934).
        width: Their mean width, in the unit of the targets.
        rows: Rows.
    """

    level: float
    inside: Interval
    width: float
    rows: int

    @property
    def finding(self) -> str:
        """`too narrow` or `too wide`, where the interval of the share shows it."""
        if not self.inside.excludes(self.level):
            return ""
        return "too narrow" if self.inside.estimate < self.level else "too wide"


def coverage_at(
    predictions: RealPredictions, levels: Sequence[float] = LEVELS, *, confidence: float = 0.95
) -> tuple[Coverage, ...]:
    """Coverage of the central intervals `mean +- z deviation` of each level.

    Args:
        predictions: With targets.
        levels: Each inside (0, 1).
        confidence: Coverage of the exact interval of each share.

    Raises:
        ConfigError: If a level or the confidence is not inside (0, 1).
        DataError: If there are no targets.
    """
    check_level(confidence)
    return tuple(_coverage(predictions, check_level(level), confidence) for level in levels)


def _coverage(predictions: RealPredictions, level: float, confidence: float) -> Coverage:
    held = int(predictions.gaussians.inside(level).sum())
    rows = len(predictions)
    width = 2.0 * reach(level) * float(predictions.deviation.mean())
    return Coverage(level, share_interval(held, rows, confidence), width, rows)
