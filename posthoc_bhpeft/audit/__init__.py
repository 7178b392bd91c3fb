"""Evidence about predictions: measured, compared, decided from, and told.

`audit` does all of it at once; the parts are pure functions of arrays or of `Predictions`.
"""

from __future__ import annotations

from posthoc_bhpeft.audit.auditing import audit
from posthoc_bhpeft.audit.classes import Plan
from posthoc_bhpeft.audit.contest import Contest, RivalName
from posthoc_bhpeft.audit.decisions import (
    ConformalSets,
    Cost,
    Decision,
    SetCheck,
    as_rule,
    at_most_errors,
    check_sets,
    checked,
    conformal_sets,
    cost,
    review_share,
)
from posthoc_bhpeft.audit.drift import Drift, Period, Trend, drift
from posthoc_bhpeft.audit.files import read_predictions
from posthoc_bhpeft.audit.gates import Condition, failures
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
from posthoc_bhpeft.audit.metrics.catalogue import DETECTION, GAUSSIAN, METRICS, Metric
from posthoc_bhpeft.audit.metrics.measuring import compare, detect, measure, measure_gaussian
from posthoc_bhpeft.audit.plots import (
    reliability_diagram,
    risk_coverage_plot,
    stream_plot,
    uncertainty_plot,
)
from posthoc_bhpeft.audit.predicting import predictions_of
from posthoc_bhpeft.audit.predictions import Predictions
from posthoc_bhpeft.audit.regression import (
    REGRESSION,
    RealPredictions,
    RegressionAudit,
    RegressionPlan,
    fit_noise,
    read_real_predictions,
)
from posthoc_bhpeft.audit.report import Rules, Verdict
from posthoc_bhpeft.audit.reporting import verdict, write_report
from posthoc_bhpeft.audit.result import Audit, Audited
from posthoc_bhpeft.audit.slices import Correction, Slice, slices

__all__ = [
    "DETECTION",
    "GAUSSIAN",
    "METRICS",
    "REGRESSION",
    "Audit",
    "Audited",
    "Condition",
    "ConformalSets",
    "Contest",
    "Correction",
    "Cost",
    "Decision",
    "Drift",
    "Interval",
    "Metric",
    "Metrics",
    "Period",
    "Plan",
    "Predictions",
    "RealPredictions",
    "RegressionAudit",
    "RegressionPlan",
    "Rejection",
    "Reliability",
    "RiskCoverage",
    "RivalName",
    "Rules",
    "SetCheck",
    "Slice",
    "Trend",
    "Verdict",
    "accuracy",
    "as_rule",
    "at_most_errors",
    "audit",
    "brier_score",
    "check_sets",
    "checked",
    "compare",
    "conformal_sets",
    "cost",
    "detect",
    "drift",
    "errors_after_rejection",
    "expected_calibration_error",
    "failures",
    "fit_noise",
    "measure",
    "measure_gaussian",
    "negative_log_likelihood",
    "paired_bootstrap",
    "predictions_of",
    "read_predictions",
    "read_real_predictions",
    "reliability",
    "reliability_diagram",
    "review_share",
    "risk_coverage",
    "risk_coverage_plot",
    "slices",
    "stream_plot",
    "summary",
    "uncertainty_plot",
    "verdict",
    "write_report",
]
