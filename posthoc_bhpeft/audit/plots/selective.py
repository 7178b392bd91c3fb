"""What is left to go wrong when the least certain rows are handed over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

from posthoc_bhpeft.audit.arrays import Array
from posthoc_bhpeft.audit.metrics import errors_after_rejection, risk_coverage
from posthoc_bhpeft.audit.plots.canvas import (
    COLOURS,
    LEGEND,
    SOFT,
    at_least_one,
    clean,
    empty_figure,
    literal,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# A legend of more lines would cover the curves.
_MOST_INSIDE = 3
# Words stand left of a line beyond this share kept, right of one before it.
_LEFT_OF = 0.5


def risk_coverage_plot(
    predictions: Mapping[str, Array],
    labels: Array,
    uncertainty: Mapping[str, Array] | None = None,
    *,
    title: str = "Errors left when the least certain are handed over",
    share: float = 0.10,
    marks: Mapping[str, float] | None = None,
    size: tuple[float, float] = (6.6, 4.4),
    colours: Sequence[str] = COLOURS,
) -> Figure:
    """Error rate among the rows kept against the share kept, a line a model.

    Args:
        predictions: name of each model and its probabilities ``(N, C)``.
        labels: shape ``(N,)``.
        uncertainty: the score ``(N,)`` to rank by, for the models that have one of their own;
            the others are ranked by one less the top probability.
        title: the line on top.
        share: the rejected share to point at.
        marks: shares kept to point at instead, by what stands beside them.
        size: in inches.
        colours: of the models, in turn.

    Raises:
        DataError: if there is no model or the arrays do not fit.
        ConfigError: if matplotlib is missing or a setting is out of range.
    """
    at_least_one(predictions)
    figure = empty_figure(size, title)
    axis = figure.subplots()
    scores = uncertainty or {}
    highest = 0.0
    # Later marks are smaller, so that two models with the same figure are both seen.
    sizes = cycle((10.0, 6.0, 3.5))
    # The first model is the one that matters, so its curve lies on top.
    orders = range(2 + len(predictions), 2, -1)
    for (name, probabilities), colour, dot, order in zip(
        predictions.items(), cycle(colours), sizes, orders, strict=False
    ):
        curve = risk_coverage(probabilities, labels, scores.get(name))
        left = errors_after_rejection(probabilities, labels, scores.get(name), share)
        label = f"{literal(name)}: AURC {curve.area:.4f}"
        if marks is None:
            label += f", {left.errors_left:.0f} of {left.errors} errors left"
        axis.plot(
            100 * curve.coverage, 100 * curve.risk, color=colour, lw=2, label=label, zorder=order
        )
        if marks is None:
            kept = 100 * left.kept / len(curve.risk)
            axis.plot(kept, 100 * left.error_rate_left, "o", color=colour, ms=dot)
        # The first few rows make a curve of jumps; they shall not set the scale.
        highest = max(highest, float(curve.risk[len(curve.risk) // 20 :].max()))
    _point_at(axis, {f"{share:.0%} rejected": 1 - share} if marks is None else marks)
    axis.set(xlim=(0, 100.5), ylim=(0, max(130 * highest, 1.0)))
    axis.set(xlabel="rows kept, most certain first (%)", ylabel="errors among them (%)")
    if len(predictions) > _MOST_INSIDE:
        figure.legend(loc="outside lower center", ncols=2, **LEGEND)
    else:
        axis.legend(loc="lower right", **LEGEND)
    clean(axis)
    return figure


def _point_at(axis: Axes, marks: Mapping[str, float]) -> None:
    """A dotted line at each share kept, with its words, lower for every further one."""
    for place, (words, kept) in enumerate(sorted(marks.items(), key=lambda mark: -mark[1])):
        axis.axvline(100 * kept, color=SOFT, lw=1, ls=":", zorder=0)
        shown = literal(words)
        axis.annotate(
            f"{shown} " if kept > _LEFT_OF else f" {shown}",
            (100 * kept, 0.95 - 0.07 * place),
            xycoords=("data", "axes fraction"),
            ha="right" if kept > _LEFT_OF else "left",
            color=SOFT,
            fontsize=9,
        )
