"""Measuring predictions: metrics are pure functions, plots are drawn from what they return."""

from __future__ import annotations

from posthoc_bhpeft.audit.metrics import (
    Interval,
    Metrics,
    Rejection,
    Reliability,
    RiskCoverage,
    accuracy,
    brier_score,
    errors_after_rejection,
    expected_calibration_error,
    negative_log_likelihood,
    paired_bootstrap,
    reliability,
    risk_coverage,
    summary,
)
from posthoc_bhpeft.audit.plots import (
    reliability_diagram,
    risk_coverage_plot,
    stream_plot,
    uncertainty_plot,
)

__all__ = [
    "Interval",
    "Metrics",
    "Rejection",
    "Reliability",
    "RiskCoverage",
    "accuracy",
    "brier_score",
    "errors_after_rejection",
    "expected_calibration_error",
    "negative_log_likelihood",
    "paired_bootstrap",
    "reliability",
    "reliability_diagram",
    "risk_coverage",
    "risk_coverage_plot",
    "stream_plot",
    "summary",
    "uncertainty_plot",
]
