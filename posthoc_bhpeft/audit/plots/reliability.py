"""Is a model as sure as it is right?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np

from posthoc_bhpeft.audit.arrays import Array, Floats, check_pair
from posthoc_bhpeft.audit.metrics import (
    expected_calibration_error,
    negative_log_likelihood,
    reliability,
)
from posthoc_bhpeft.audit.plots.canvas import (
    COLOURS,
    INK,
    LEGEND,
    RIGHT,
    SOFT,
    WRONG,
    at_least_one,
    clean,
    empty_figure,
    literal,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROWS_PER_BIN = 40


def reliability_diagram(
    predictions: Mapping[str, Array],
    labels: Array,
    *,
    title: str = "Is the model as sure as it should be?",
    bins: int | None = None,
    level: float = 0.95,
    counts: bool = True,
    colours: Sequence[str] = COLOURS,
) -> Figure:
    """Accuracy against confidence, a panel a model, with Wilson bands and the counts below.

    Bins hold about equally many rows each, so that no point rests on a handful.

    Args:
        predictions: name of each model and its probabilities ``(N, C)``.
        labels: shape ``(N,)``.
        title: the line on top.
        bins: bins of equal mass; None is one for every 40 rows, 4 to 15.
        level: coverage of the bands.
        counts: whether a strip below says how many rows have which confidence.
        colours: of the models, in turn.

    Raises:
        DataError: if there is no model or the arrays do not fit.
        ConfigError: if matplotlib is missing or a setting is out of range.
    """
    figure = empty_figure((4.1 * at_least_one(predictions) + 0.5, 5.2 if counts else 4.2), title)
    axes = figure.subplots(
        1 + counts,
        len(predictions),
        height_ratios=(4, 1)[: 1 + counts],
        sharex=True,
        sharey="row",
        squeeze=False,
    )
    for (name, probabilities), column, colour in zip(
        predictions.items(), axes.T, cycle(colours), strict=False
    ):
        # Without a title above, the page has the name of the only model.
        shown = name if title or len(predictions) > 1 else ""
        _reliability_panel(column[0], shown, probabilities, labels, colour, bins, level)
        column[-1].set_xlabel("confidence")
        if counts:
            _counts_panel(column[1], probabilities, labels, colour)
    left = min(1.0 / np.shape(p)[1] for p in predictions.values())
    axes[0, 0].set(xlim=(left - 0.02, 1.015), ylim=(-0.02, 1.02), ylabel="accuracy")
    if counts:
        axes[1, 0].set_ylabel("rows")
    axes[0, 0].legend(loc="best", **LEGEND)
    return figure


def confidence_histogram(
    probabilities: Array,
    labels: Array | None,
    *,
    title: str = "How sure it is, right and wrong",
    size: tuple[float, float] = (5.0, 3.8),
) -> Figure:
    """How many rows have which confidence, those predicted wrong stacked on those right.

    Args:
        probabilities: shape ``(N, C)``.
        labels: shape ``(N,)``; None draws all rows in one colour.
        title: the line on top.
        size: in inches.

    Raises:
        DataError: if the arrays do not fit.
        ConfigError: if matplotlib is missing.
    """
    known = np.zeros(len(probabilities)) if labels is None else labels
    p, y = check_pair(probabilities, known)
    confidence, right = p.max(axis=1), p.argmax(axis=1) == y
    figure = empty_figure(size, title)
    axis = figure.subplots()
    edges = np.linspace(1.0 / p.shape[1], 1.0, 21).tolist()
    parts = {"right": (confidence[right], RIGHT), "wrong": (confidence[~right], WRONG)}
    if labels is None:
        parts = {"all rows": (confidence, RIGHT)}
    axis.hist(
        [values for values, _ in parts.values()],
        bins=edges,
        stacked=True,
        rwidth=0.9,
        color=[colour for _, colour in parts.values()],
        label=[f"{name} ({len(values):,})" for name, (values, _) in parts.items()],
    )
    axis.set(xlabel="confidence", ylabel="rows", xlim=(edges[0], 1.0))
    axis.legend(loc="upper left", **LEGEND)
    clean(axis)
    return figure


def _reliability_panel(
    axis: Axes,
    name: str,
    probabilities: Array,
    labels: Array,
    colour: str,
    bins: int | None,
    level: float,
) -> None:
    """The diagonal, the band, the points and the two figures that sum them up."""
    rows = len(probabilities)
    count = bins or int(np.clip(rows // _ROWS_PER_BIN, 4, 15))
    r = reliability(probabilities, labels, count, equal_mass=True, level=level)
    axis.plot([0, 1], [0, 1], color=SOFT, lw=1, ls="--", label="as sure as right")
    axis.vlines(
        r.confidence, r.low, r.high, color=colour, alpha=0.35, lw=5, label=f"{level:.0%} band"
    )
    axis.plot(r.confidence, r.accuracy, "o-", color=colour, lw=1.6, ms=5, label="accuracy")
    nll = negative_log_likelihood(probabilities, labels)
    ece = expected_calibration_error(probabilities, labels)
    axis.set_title(f"{literal(name)}\n", fontsize=12, color=INK, fontweight="bold")
    axis.text(
        0.5,
        1.02,
        f"ECE {ece:.3f}, NLL {nll:.3f}",
        transform=axis.transAxes,
        ha="center",
        fontsize=10,
        color=SOFT,
    )
    clean(axis)


def _counts_panel(axis: Axes, probabilities: Array, labels: Array, colour: str) -> None:
    """How many rows have which confidence."""
    p, _ = check_pair(probabilities, labels)
    confidence: Floats = p.max(axis=1)
    axis.hist(confidence, bins=np.linspace(0, 1, 31).tolist(), color=colour, alpha=0.75, rwidth=0.9)
    clean(axis)
