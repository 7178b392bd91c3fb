"""Which answers go to a human, and which labels a row may have: promises that hold for new rows."""

from posthoc_bhpeft.audit.decisions.conformal import (
    ConformalSets,
    SetCheck,
    check_sets,
    conformal_sets,
)
from posthoc_bhpeft.audit.decisions.thresholds import (
    PREDICTIVE,
    Cost,
    Decision,
    as_rule,
    at_most_errors,
    checked,
    cost,
    review_share,
)

__all__ = [
    "PREDICTIVE",
    "ConformalSets",
    "Cost",
    "Decision",
    "SetCheck",
    "as_rule",
    "at_most_errors",
    "check_sets",
    "checked",
    "conformal_sets",
    "cost",
    "review_share",
]
