"""How good, and how honest, probabilities are: pure functions of arrays, float64 inside.

Every function takes ``probabilities`` of shape ``(N, C)`` and ``labels`` of shape ``(N,)``, torch
tensors or numpy arrays on any device. Rows are normalised once more in float64, so half precision
does no harm. The predicted class is the most likely one, the first of them where two are equal.
"""

from __future__ import annotations

from posthoc_bhpeft.audit.metrics.bootstrap import Interval, paired_bootstrap
from posthoc_bhpeft.audit.metrics.calibration import (
    Reliability,
    classwise_calibration_error,
    expected_calibration_error,
    maximum_calibration_error,
    reliability,
)
from posthoc_bhpeft.audit.metrics.overall import Metrics, summary
from posthoc_bhpeft.audit.metrics.proper import (
    BrierParts,
    accuracy,
    brier_parts,
    brier_score,
    macro_f1,
    negative_log_likelihood,
)
from posthoc_bhpeft.audit.metrics.selective import (
    Rejection,
    RiskCoverage,
    accuracy_at_coverage,
    errors_after_rejection,
    risk_coverage,
)
from posthoc_bhpeft.audit.metrics.smooth import smooth_calibration_error

__all__ = [
    "BrierParts",
    "Interval",
    "Metrics",
    "Rejection",
    "Reliability",
    "RiskCoverage",
    "accuracy",
    "accuracy_at_coverage",
    "brier_parts",
    "brier_score",
    "classwise_calibration_error",
    "errors_after_rejection",
    "expected_calibration_error",
    "macro_f1",
    "maximum_calibration_error",
    "negative_log_likelihood",
    "paired_bootstrap",
    "reliability",
    "risk_coverage",
    "smooth_calibration_error",
    "summary",
]
