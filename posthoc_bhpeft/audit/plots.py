"""Pictures of what `posthoc_bhpeft.audit.metrics` measures.

Each function returns a matplotlib ``Figure`` that belongs to nobody else: no pyplot, no window, no
global setting. ``figure.savefig("plot.png")`` writes it. matplotlib comes with the extra ``plots``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from posthoc_bhpeft.audit.arrays import Array, Floats, as_floats, check_pair, check_scores
from posthoc_bhpeft.audit.metrics import (
    errors_after_rejection,
    expected_calibration_error,
    negative_log_likelihood,
    reliability,
    risk_coverage,
)
from posthoc_bhpeft.errors import ConfigError, DataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart with every common kind of colour blindness, and in grey.
_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00")
_RIGHT, _WRONG = "#0072B2", "#D55E00"
_INK, _SOFT, _GRID = "#222222", "#666666", "#E4E4E4"
_ROWS_PER_BIN = 40
_MOST_IN_LEGEND = 14
_LEGEND: dict[str, Any] = {
    "fontsize": 9,
    "labelcolor": _INK,
    "facecolor": "white",
    "edgecolor": "none",
    "framealpha": 0.9,
}


def reliability_diagram(
    predictions: Mapping[str, Array],
    labels: Array,
    *,
    title: str = "Is the model as sure as it should be?",
    bins: int | None = None,
    level: float = 0.95,
) -> Figure:
    """Accuracy against confidence, a panel a model, with Wilson bands and the counts below.

    Bins hold about equally many rows each, so that no point rests on a handful.

    Args:
        predictions: name of each model and its probabilities ``(N, C)``.
        labels: shape ``(N,)``.
        title: the line on top.
        bins: bins of equal mass; None is one for every 40 rows, 4 to 15.
        level: coverage of the bands.

    Raises:
        DataError: if there is no model or the arrays do not fit.
        ConfigError: if matplotlib is missing or a setting is out of range.
    """
    figure = _figure((4.1 * _some(predictions) + 0.5, 5.2), title)
    axes = figure.subplots(
        2, len(predictions), height_ratios=(4, 1), sharex=True, sharey="row", squeeze=False
    )
    for (name, probabilities), (top, bottom), colour in zip(
        predictions.items(), axes.T, cycle(_COLOURS), strict=False
    ):
        _reliability_panel(top, name, probabilities, labels, colour, bins, level)
        _confidence_histogram(bottom, probabilities, labels, colour)
    left = min(1.0 / np.shape(p)[1] for p in predictions.values())
    axes[0, 0].set(xlim=(left - 0.02, 1.015), ylim=(-0.02, 1.02), ylabel="accuracy")
    axes[1, 0].set_ylabel("rows")
    axes[0, 0].legend(loc="lower left", **_LEGEND)
    return figure


def risk_coverage_plot(
    predictions: Mapping[str, Array],
    labels: Array,
    uncertainty: Mapping[str, Array] | None = None,
    *,
    title: str = "Errors left when the least certain are handed over",
    share: float = 0.10,
) -> Figure:
    """Error rate among the rows kept against the share kept, a line a model.

    Args:
        predictions: name of each model and its probabilities ``(N, C)``.
        labels: shape ``(N,)``.
        uncertainty: the score ``(N,)`` to rank by, for the models that have one of their own;
            the others are ranked by one less the top probability.
        title: the line on top.
        share: the rejected share to point at.

    Raises:
        DataError: if there is no model or the arrays do not fit.
        ConfigError: if matplotlib is missing or a setting is out of range.
    """
    _some(predictions)
    figure = _figure((6.6, 4.4), title)
    axis = figure.subplots()
    scores = uncertainty or {}
    highest = 0.0
    # Later marks are smaller, so that two models with the same figure are both seen.
    sizes = cycle((10.0, 6.0, 3.5))
    for (name, probabilities), colour, size in zip(
        predictions.items(), cycle(_COLOURS), sizes, strict=False
    ):
        curve = risk_coverage(probabilities, labels, scores.get(name))
        left = errors_after_rejection(probabilities, labels, scores.get(name), share)
        label = (
            f"{name}: AURC {curve.area:.4f}, {left.errors_left:.0f} of {left.errors} errors left"
        )
        axis.plot(100 * curve.coverage, 100 * curve.risk, color=colour, lw=2, label=label)
        axis.plot(
            100 * left.kept / len(curve.risk),
            100 * left.error_rate_left,
            "o",
            color=colour,
            ms=size,
        )
        # The first few rows make a curve of jumps; they shall not set the scale.
        highest = max(highest, float(curve.risk[len(curve.risk) // 20 :].max()))
    axis.axvline(100 * (1 - share), color=_SOFT, lw=1, ls=":", zorder=0)
    axis.annotate(
        f"{share:.0%} rejected ",
        (100 * (1 - share), 0.95),
        xycoords=("data", "axes fraction"),
        ha="right",
        color=_SOFT,
        fontsize=9,
    )
    axis.set(xlim=(0, 100.5), ylim=(0, max(130 * highest, 1.0)))
    axis.set(xlabel="rows kept, most certain first (%)", ylabel="errors among them (%)")
    axis.legend(loc="lower right", **_LEGEND)
    _clean(axis)
    return figure


def uncertainty_plot(
    aleatoric: Array,
    epistemic: Array,
    right: Array,
    *,
    title: str = "Where the doubt comes from",
) -> Figure:
    """A dot a row: doubt in the data against doubt in the weights, right and wrong predictions.

    Args:
        aleatoric: expected entropy in nats, ``(N,)``.
        epistemic: mutual information in nats, ``(N,)``.
        right: whether the prediction was right, ``(N,)``.
        title: the line on top.

    Raises:
        DataError: if the shapes differ.
        ConfigError: if matplotlib is missing.
    """
    is_right = as_floats(right).astype(bool)
    across = check_scores(aleatoric, len(is_right))
    up = check_scores(epistemic, len(is_right))
    figure = _figure((6.0, 4.4), title)
    axis = figure.subplots()
    for chosen, name, colour, marker in (
        (is_right, "right", _RIGHT, "o"),
        (~is_right, "wrong", _WRONG, "X"),
    ):
        axis.scatter(
            across[chosen],
            up[chosen],
            s=26,
            c=colour,
            marker=marker,
            alpha=0.65,
            linewidths=0,
            label=f"{name} ({int(chosen.sum())})",
        )
    axis.set(xlabel="aleatoric: doubt in the data (nats)")
    axis.set(ylabel="epistemic: doubt in the weights (nats)")
    axis.set(xlim=(0, None), ylim=(0, None))
    axis.legend(loc="upper left", **_LEGEND)
    _clean(axis)
    return figure


def stream_plot(
    rounds: Sequence[str],
    accuracies: Mapping[str, Sequence[float | None]],
    *,
    title: str = "Accuracy on every past round as new rounds are learnt",
) -> Figure:
    """A line for each round's test rows from the time it is learnt, and the mean of all.

    A line that stays level is a round remembered; one that falls is forgotten.

    Args:
        rounds: names of the R rounds, in the order they were learnt.
        accuracies: by name of a round, its accuracy from 0 to 1 after each of the R; None where it
            was not measured.
        title: the line on top.

    Raises:
        DataError: if there is nothing to draw, or a line has not R values.
        ConfigError: if matplotlib is missing.
    """
    wrong = [name for name, values in accuracies.items() if len(values) != len(rounds)]
    if not accuracies or wrong:
        raise DataError(
            f"{wrong[0]!r} has {len(accuracies[wrong[0]])} values for {len(rounds)} rounds."
            if wrong
            else "there is nothing to draw: no round was scored"
        )
    table = np.array(
        [[np.nan if v is None else 100 * v for v in row] for row in accuracies.values()]
    )
    figure = _figure((max(7.5, 2.5 + 0.6 * len(rounds)), 4.4), title)
    axis = figure.subplots()
    places = np.arange(1, len(rounds) + 1)
    number = {name: place for place, name in zip(places, rounds, strict=True)}
    for row, name, colour in zip(table, accuracies, _shades(len(table)), strict=True):
        label = f"{number[name]}  {_shortened(name)}" if name in number else _shortened(name)
        axis.plot(places, row, "o-", color=colour, lw=1.8, ms=4.5, label=label)
    counts = np.isfinite(table).sum(axis=0)
    mean = np.where(counts, np.nansum(table, axis=0) / np.maximum(counts, 1), np.nan)
    axis.plot(places, mean, "--", color=_INK, lw=2, label="mean of those learnt")
    axis.set(xlabel="last round learnt", ylabel="accuracy on test rows (%)", xticks=places)
    axis.set_xlim(0.8, len(rounds) + 0.2)
    _clean(axis)
    if len(table) <= _MOST_IN_LEGEND:
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), title="test rows of", **_LEGEND)
    return figure


def _shades(count: int) -> list[str]:
    """Colours from the first round to the last, in an order that can be seen."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colormaps["viridis"](share)) for share in np.linspace(0.05, 0.85, count)]


def _shortened(name: str, longest: int = 26) -> str:
    return name if len(name) <= longest else f"{name[: longest - 3]}..."


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
    axis.plot([0, 1], [0, 1], color=_SOFT, lw=1, ls="--", label="as sure as right")
    axis.vlines(
        r.confidence, r.low, r.high, color=colour, alpha=0.35, lw=5, label=f"{level:.0%} band"
    )
    axis.plot(r.confidence, r.accuracy, "o-", color=colour, lw=1.6, ms=5, label="accuracy")
    nll = negative_log_likelihood(probabilities, labels)
    ece = expected_calibration_error(probabilities, labels)
    axis.set_title(f"{name}\n", fontsize=12, color=_INK, fontweight="bold")
    axis.text(
        0.5,
        1.02,
        f"ECE {ece:.3f}   NLL {nll:.3f}",
        transform=axis.transAxes,
        ha="center",
        fontsize=10,
        color=_SOFT,
    )
    _clean(axis)


def _confidence_histogram(axis: Axes, probabilities: Array, labels: Array, colour: str) -> None:
    """How many rows have which confidence."""
    p, _ = check_pair(probabilities, labels)
    confidence: Floats = p.max(axis=1)
    axis.hist(confidence, bins=np.linspace(0, 1, 31).tolist(), color=colour, alpha=0.75, rwidth=0.9)
    axis.set_xlabel("confidence")
    _clean(axis)


def _some(predictions: Mapping[str, Array]) -> int:
    if not predictions:
        raise DataError("there is no model to draw; pass {'MAP': probabilities, ...}")
    return len(predictions)


def _figure(size: tuple[float, float], title: str) -> Figure:
    """An empty figure with a title, bound to no window and to no global state."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            "drawing needs matplotlib, which is not installed; pip install 'posthoc-bhpeft[plots]'"
        ) from error
    figure = Figure(figsize=size, dpi=150, layout="constrained", facecolor="white")
    figure.suptitle(title, fontsize=13, color=_INK)
    return figure


def _clean(axis: Axes) -> None:
    """A light grid behind, no box, quiet ticks."""
    axis.grid(color=_GRID, lw=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(_SOFT)
    axis.tick_params(colors=_SOFT, labelsize=9)
    axis.xaxis.label.set_color(_INK)
    axis.yaxis.label.set_color(_INK)
