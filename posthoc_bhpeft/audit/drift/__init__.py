"""Rows against those of a reference: what has changed, and since when."""

from posthoc_bhpeft.audit.drift.compared import Drift, drift
from posthoc_bhpeft.audit.drift.periods import Period, Trend

__all__ = ["Drift", "Period", "Trend", "drift"]
