"""Pictures of what `posthoc_bhpeft.audit` measures.

Each function returns a matplotlib ``Figure`` that belongs to nobody else: no pyplot, no window, no
global setting. ``figure.savefig("plot.png")`` writes it. matplotlib comes with the extra ``plots``.
"""

from __future__ import annotations

from posthoc_bhpeft.audit.plots.groups import confusion_plot, periods_plot, slices_plot
from posthoc_bhpeft.audit.plots.reliability import confidence_histogram, reliability_diagram
from posthoc_bhpeft.audit.plots.rounds import stream_plot
from posthoc_bhpeft.audit.plots.selective import risk_coverage_plot
from posthoc_bhpeft.audit.plots.uncertainty import uncertainty_plot

__all__ = [
    "confidence_histogram",
    "confusion_plot",
    "periods_plot",
    "reliability_diagram",
    "risk_coverage_plot",
    "slices_plot",
    "stream_plot",
    "uncertainty_plot",
]
