"""Audits of regressions: evidence about predicted means and variances, and a page of it."""

from __future__ import annotations

from posthoc_bhpeft.audit.regression.auditing import RegressionPlan, audit_regression
from posthoc_bhpeft.audit.regression.conformal import (
    ConformalIntervals,
    IntervalCheck,
    check_intervals,
    conformal_intervals,
)
from posthoc_bhpeft.audit.regression.coverage import Coverage, coverage_at
from posthoc_bhpeft.audit.regression.decisions import (
    RealDecision,
    at_most_off,
    review_least_sure,
)
from posthoc_bhpeft.audit.regression.figures import REGRESSION
from posthoc_bhpeft.audit.regression.files import holds_real_predictions, read_real_predictions
from posthoc_bhpeft.audit.regression.groups import RealGroup, groups
from posthoc_bhpeft.audit.regression.page import regression_page, write_regression_report
from posthoc_bhpeft.audit.regression.predicting import (
    fit_noise,
    is_regression,
    real_predictions_of,
)
from posthoc_bhpeft.audit.regression.predictions import RealPredictions
from posthoc_bhpeft.audit.regression.result import AuditedRegression, RegressionAudit
from posthoc_bhpeft.audit.regression.verdict import real_verdict

__all__ = [
    "REGRESSION",
    "AuditedRegression",
    "ConformalIntervals",
    "Coverage",
    "IntervalCheck",
    "RealDecision",
    "RealGroup",
    "RealPredictions",
    "RegressionAudit",
    "RegressionPlan",
    "at_most_off",
    "audit_regression",
    "check_intervals",
    "conformal_intervals",
    "coverage_at",
    "fit_noise",
    "groups",
    "holds_real_predictions",
    "is_regression",
    "read_real_predictions",
    "real_predictions_of",
    "real_verdict",
    "regression_page",
    "review_least_sure",
    "write_regression_report",
]
