"""Made-up predictions of numbers that the tests share."""

from __future__ import annotations

from typing import Any

import numpy as np

from posthoc_bhpeft.audit.regression import (
    RealPredictions,
    RegressionAudit,
    RegressionPlan,
    audit_regression,
)

ROWS = 150


def honest(
    rows: int = 400, *, seed: int = 0, spread: float = 1.0, **further: Any
) -> RealPredictions:
    """Targets drawn from their own Gaussians; `spread` times as far off where it is not 1."""
    rng = np.random.default_rng(seed)
    mean, epistemic = 3.0 * rng.normal(size=rows), rng.gamma(1.0, 0.8, size=rows)
    deviation = np.sqrt(0.3 + epistemic)
    targets = mean + spread * deviation * rng.normal(size=rows)
    return RealPredictions(mean, np.full(rows, 0.3), epistemic, targets, **further)


def point(predictions: RealPredictions) -> RealPredictions:
    """The same means with the noise alone."""
    rows = len(predictions)
    return RealPredictions(predictions.mean, predictions.noise, np.zeros(rows), predictions.targets)


def whole() -> RegressionAudit:
    """An audit with something in every section of its page."""
    rows = honest(
        ROWS, texts=("A <b>fine</b> text",) * ROWS, columns={"site": ("a", "b", "c") * (ROWS // 3)},
        about={"Posterior": "of the test"},
    )  # fmt: skip
    plan = RegressionPlan(tolerance=1.0, resamples=50)
    return audit_regression(rows, rivals={"MAP": point(rows)}, plan=plan, name="mine")
