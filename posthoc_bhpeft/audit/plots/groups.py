"""Groups of rows and stretches of time, each with its interval; and what is taken for what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from posthoc_bhpeft.audit.drift.periods import Period
from posthoc_bhpeft.audit.metrics import Interval
from posthoc_bhpeft.audit.plots.canvas import (
    INK,
    LEGEND,
    RIGHT,
    SOFT,
    WRONG,
    clean,
    empty_figure,
    shortened,
)
from posthoc_bhpeft.audit.slices import Slice
from posthoc_bhpeft.errors import DataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats: TypeAlias = NDArray[np.float64]

_FEW_CELLS = 12


def slices_plot(
    slices: Sequence[Slice],
    *,
    overall: float | None = None,
    title: str = "Which groups are served worse",
    width: float = 5.0,
) -> Figure:
    """Accuracy of each group with its interval, a line a group; those with a finding stand out.

    Args:
        slices: from top to bottom.
        overall: accuracy of all rows, drawn as a line.
        title: the line on top.
        width: in inches; the height follows the number of groups.

    Raises:
        DataError: if there is no group.
        ConfigError: if matplotlib is missing.
    """
    if not slices:
        raise DataError("there is no group to draw")
    figure = empty_figure((width, 1.0 + 0.27 * len(slices)), title)
    axis = figure.subplots()
    for place, group in enumerate(slices):
        colour = WRONG if group.finding else RIGHT
        ends = [100 * group.accuracy.low, 100 * group.accuracy.high]
        axis.plot(ends, [place, place], color=colour, lw=2, alpha=0.6)
        axis.plot(100 * group.accuracy.estimate, place, _marker(group), color=colour, ms=6)
    if overall is not None:
        axis.axvline(100 * overall, color=SOFT, lw=1, ls="--", zorder=0)
    names = [shortened(f"{group.column}: {group.value}", 30) for group in slices]
    axis.set_yticks(range(len(slices)), names)
    axis.set(xlabel="accuracy (%)", ylim=(len(slices) - 0.4, -0.6))
    clean(axis)
    axis.tick_params(axis="y", labelcolor=INK, length=0)
    axis.grid(visible=False, axis="y")
    return figure


def periods_plot(
    periods: Sequence[Period],
    *,
    title: str = "What changed over time",
    size: tuple[float, float] = (5.0, 4.6),
) -> Figure:
    """Doubt over time above; how sure and how right below, each with its interval.

    Args:
        periods: in order.
        title: the line on top.
        size: in inches.

    Raises:
        DataError: if there is no period.
        ConfigError: if matplotlib is missing.
    """
    if not periods:
        raise DataError("there is no period to draw")
    figure = empty_figure(size, title)
    top, bottom = figure.subplots(2, 1, sharex=True)
    _line(top, [p.epistemic for p in periods], "epistemic", INK, "s", 1.0)
    top.set(ylabel="doubt (nats)", ylim=(0, None))
    _line(bottom, [p.confidence for p in periods], "confidence", RIGHT, "o", 100.0)
    if all(p.accuracy is not None for p in periods):
        found = [p.accuracy for p in periods if p.accuracy is not None]
        _line(bottom, found, "accuracy", WRONG, "X", 100.0)
    bottom.set_ylabel("%")
    bottom.legend(loc="best", **LEGEND)
    step = max(1, -(-len(periods) // 12))
    shown = range(0, len(periods), step)
    bottom.set_xticks(list(shown), [shortened(periods[i].name, 14) for i in shown])
    for axis in (top, bottom):
        clean(axis)
    bottom.tick_params(axis="x", rotation=45 if len(periods) > 4 else 0)
    return figure


def confusion_plot(
    counts: NDArray[np.int64],
    names: Sequence[str],
    *,
    title: str = "What is taken for what",
) -> Figure:
    """Rows of each class (down) by predicted class (across), shaded by their share of the class.

    Args:
        counts: ``(C, C)``, true class down, predicted class across; 12 classes at most.
        names: of the ``C`` classes.
        title: the line on top.

    Raises:
        DataError: if there are more than 12 classes.
        ConfigError: if matplotlib is missing.
    """
    if len(counts) > _FEW_CELLS:
        raise DataError(
            f"{len(counts)} classes are too many for a picture that can be read (at most "
            f"{_FEW_CELLS}); list the most frequent confusions instead"
        )
    figure = empty_figure((2.4 + 0.62 * len(counts), 1.9 + 0.52 * len(counts)), title)
    axis = figure.subplots()
    share: Floats = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axis.imshow(share, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
    for (true, predicted), count in np.ndenumerate(counts):
        colour = "white" if share[true, predicted] > 0.55 else INK
        axis.text(predicted, true, f"{count:,}", ha="center", va="center", color=colour)
    short = [shortened(name, 16) for name in names]
    axis.set_xticks(range(len(names)), short, rotation=45 if len(names) > 4 else 0)
    axis.set_yticks(range(len(names)), short)
    axis.set(xlabel="predicted", ylabel="true")
    axis.spines[:].set_visible(False)
    axis.tick_params(colors=SOFT, labelsize=9, length=0)
    return figure


def _marker(group: Slice) -> str:
    return "D" if group.finding else "o"


def _line(
    axis: Axes, values: Sequence[Interval], name: str, colour: str, marker: str, scale: float
) -> None:
    """Estimates joined by a line, with their intervals as a band."""
    places = np.arange(len(values))
    low = [scale * v.low for v in values]
    high = [scale * v.high for v in values]
    axis.fill_between(places, low, high, color=colour, alpha=0.18, lw=0)
    estimates = [scale * v.estimate for v in values]
    axis.plot(places, estimates, f"{marker}-", color=colour, lw=1.8, ms=5, label=name)
