"""Pictures of a regression: how honest its intervals are, and what its doubt is good for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np

from posthoc_bhpeft.audit.arrays import Floats
from posthoc_bhpeft.audit.plots.canvas import (
    COLOURS,
    LEGEND,
    RIGHT,
    SOFT,
    clean,
    empty_figure,
    literal,
)
from posthoc_bhpeft.audit.regression.predictions import RealPredictions
from posthoc_bhpeft.errors import DataError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZE = (4.7, 3.7)
PIT_BINS = 10
_LEVELS = np.arange(1, 100) / 100
_ROWS_PER_POINT = 40


def interval_plot(
    models: Mapping[str, RealPredictions],
    *,
    level: float = 0.95,
    title: str = "Do intervals hold what they say?",
    size: tuple[float, float] = SIZE,
    colours: Sequence[str] = COLOURS,
) -> Figure:
    """Share of targets inside central intervals against their level, a line a model.

    The band of the first model is exact at each level (Clopper and Pearson, 1934), not at all
    levels at once.

    Args:
        models: With targets, by name.
        level: Coverage of the band.
        title: The line on top.
        size: In inches.
        colours: Of the models, in turn.

    Raises:
        DataError: If there is no model, or no targets.
        ConfigError: If matplotlib is missing.
    """
    check_some(models)
    figure = empty_figure(size, title)
    axis = figure.subplots()
    axis.plot([0, 100], [0, 100], color=SOFT, lw=1, ls="--", zorder=1)
    for place, (name, model, colour) in enumerate(named(models, colours)):
        inside = share_inside(model)
        if place == 0:
            low, high = share_band(inside, len(model), level)
            axis.fill_between(100 * _LEVELS, 100 * low, 100 * high, color=colour, alpha=0.18, lw=0)
        order = 2 + len(models) - place
        axis.plot(
            100 * _LEVELS, 100 * inside, color=colour, lw=2, label=literal(name), zorder=order
        )
    axis.set(xlim=(0, 100), ylim=(0, 100))
    axis.set(xlabel="level of the interval (%)", ylabel="targets inside (%)")
    axis.legend(loc="upper left", **LEGEND)
    clean(axis)
    return figure


def pit_plot(
    model: RealPredictions,
    *,
    level: float = 0.95,
    title: str = "Where targets lie in what was predicted",
    size: tuple[float, float] = SIZE,
    colour: str = RIGHT,
) -> Figure:
    """Share of targets in each tenth of the predicted distribution; even if all is well.

    The band holds a bar with the chance of `level` if all is well (binomial), for each bar apart.

    Args:
        model: With targets.
        level: Of the band.
        title: The line on top.
        size: In inches.
        colour: Of the bars.

    Raises:
        DataError: If there are no targets.
        ConfigError: If matplotlib is missing.
    """
    from scipy.stats import binom

    rows = len(model)
    counts = pit_counts(model)
    figure = empty_figure(size, title)
    axis = figure.subplots()
    middles = (np.arange(PIT_BINS) + 0.5) / PIT_BINS
    axis.bar(100 * middles, 100 * counts / rows, width=94 / PIT_BINS, color=colour, alpha=0.8)
    low, high = binom.interval(level, rows, 1 / PIT_BINS)
    axis.axhspan(100 * low / rows, 100 * high / rows, color=SOFT, alpha=0.25, lw=0)
    axis.axhline(100 / PIT_BINS, color=SOFT, lw=1, ls="--")
    axis.set(xlim=(0, 100), xlabel="predicted quantile of the target (%)", ylabel="targets (%)")
    clean(axis)
    return figure


def deviation_plot(
    model: RealPredictions,
    *,
    most: int | None = None,
    title: str = "Is it further off where it says so?",
    size: tuple[float, float] = SIZE,
    colour: str = RIGHT,
) -> Figure:
    """How far off each row is against its predicted deviation, and the RMSE of groups of rows.

    Groups hold about equally many rows of like deviation; on the dashed line their error is as
    large as predicted.

    Args:
        model: With targets.
        most: Dots drawn at most, rows at even steps of the order they came in; `None` is all.
        title: The line on top.
        size: In inches.
        colour: Of dots and groups.

    Raises:
        DataError: If there are no targets.
        ConfigError: If matplotlib is missing.
    """
    figure = empty_figure(size, title)
    axis = figure.subplots()
    off, step = np.abs(model.error), 1 if most is None else max(1, -(-len(model) // most))
    axis.scatter(
        model.deviation[::step], off[::step], s=10, color=colour, alpha=0.28, linewidths=0,
        label="a row",
    )  # fmt: skip
    said, found = rmse_by_deviation(model)
    axis.plot(said, found, "o-", color="#D55E00", lw=1.6, ms=5, label="RMSE of like rows")
    low, high = axis.get_xlim()
    axis.plot([low, high], [low, high], color=SOFT, lw=1, ls="--", label="as far off as predicted")
    axis.set(xlim=(low, high), ylim=(0, None))
    axis.set(xlabel="predicted standard deviation", ylabel="distance from the target")
    axis.legend(loc="upper left", **LEGEND)
    clean(axis)
    return figure


def error_coverage_plot(
    models: Mapping[str, RealPredictions],
    *,
    marks: Mapping[str, float] | None = None,
    title: str = "Error left when the least sure rows go to a person",
    size: tuple[float, float] = SIZE,
    colours: Sequence[str] = COLOURS,
) -> Figure:
    """RMSE of the rows kept against the share kept, the surest first; a line a model.

    A model whose deviation is the same for every row is a level line: the RMSE of all rows.

    Args:
        models: With targets, by name.
        marks: Shares kept to point at, by what stands beside them.
        title: The line on top.
        size: In inches.
        colours: Of the models, in turn.

    Raises:
        DataError: If there is no model, or no targets.
        ConfigError: If matplotlib is missing.
    """
    check_some(models)
    figure = empty_figure(size, title)
    axis = figure.subplots()
    highest = 0.0
    for place, (name, model, colour) in enumerate(named(models, colours)):
        kept, error = error_left(model)
        order = 2 + len(models) - place
        axis.plot(100 * kept, error, color=colour, lw=2, label=literal(name), zorder=order)
        # The first few rows make a curve of jumps; they shall not set the scale.
        highest = max(highest, float(error[len(error) // 20 :].max()))
    for place, (words, kept_by) in enumerate(sorted((marks or {}).items(), key=lambda m: -m[1])):
        axis.axvline(100 * kept_by, color=SOFT, lw=1, ls=":", zorder=0)
        axis.annotate(
            f"{literal(words)} ", (100 * kept_by, 0.95 - 0.07 * place),
            xycoords=("data", "axes fraction"), ha="right", color=SOFT, fontsize=9,
        )  # fmt: skip
    axis.set(xlim=(0, 100.5), ylim=(0, 1.3 * highest or 1.0))
    axis.set(xlabel="rows kept, surest first (%)", ylabel="RMSE among them")
    axis.legend(loc="lower right", **LEGEND)
    clean(axis)
    return figure


def share_inside(model: RealPredictions) -> Floats:
    """Share of targets in the central interval of each of 1 to 99 %, `(99,)`."""
    reached = np.sort(np.abs(2.0 * model.gaussians.pit - 1.0))
    found: Floats = np.searchsorted(reached, _LEVELS, side="right") / len(model)
    return found


def share_band(share: Floats, rows: int, level: float) -> tuple[Floats, Floats]:
    """Exact ends of shares of so many rows, each `(99,)`."""
    from scipy.stats import beta

    held, tail = np.round(share * rows), 0.5 * (1.0 - level)
    low = np.where(held > 0, beta.ppf(tail, np.maximum(held, 1), rows - held + 1), 0.0)
    high = np.where(held < rows, beta.ppf(1 - tail, held + 1, np.maximum(rows - held, 1)), 1.0)
    return low, high


def pit_counts(model: RealPredictions) -> Floats:
    """Targets in each tenth of what was predicted, `(10,)`."""
    tenth = np.minimum((model.gaussians.pit * PIT_BINS).astype(np.int64), PIT_BINS - 1)
    return np.bincount(tenth, minlength=PIT_BINS).astype(np.float64)


def rmse_by_deviation(model: RealPredictions) -> tuple[Floats, Floats]:
    """Predicted deviation and RMSE of groups of like deviation, `(G,)` each."""
    number = int(np.clip(len(model) // _ROWS_PER_POINT, 1, 10)) if model.ranks else 1
    order = np.argsort(model.deviation, kind="stable")
    parts = np.array_split(order, number)
    said = np.array([np.sqrt(model.variance[rows].mean()) for rows in parts])
    found = np.array([np.sqrt((model.error[rows] ** 2).mean()) for rows in parts])
    return said, found


def error_left(model: RealPredictions) -> tuple[Floats, Floats]:
    """Share kept and RMSE among the rows kept, the surest first, `(N,)` each; ties averaged."""
    order = np.argsort(model.deviation, kind="stable")
    squared = model.error[order] ** 2
    first = np.flatnonzero(np.diff(model.deviation[order], prepend=-1.0) != 0.0)
    sizes = np.diff(np.append(first, len(model)))
    even = np.repeat(np.add.reduceat(squared, first) / sizes, sizes)
    kept = np.arange(1, len(model) + 1)
    return kept / len(model), np.sqrt(np.cumsum(even) / kept)


def named(
    models: Mapping[str, RealPredictions], colours: Sequence[str]
) -> list[tuple[str, RealPredictions, str]]:
    """Models with their names and colours."""
    return [(n, m, c) for (n, m), c in zip(models.items(), cycle(colours), strict=False)]


def check_some(models: Mapping[str, RealPredictions]) -> None:
    """Raise where there is no model to draw.

    Raises:
        DataError: If so.
    """
    if not models:
        raise DataError("There is no model to draw; pass {'ours': predictions, ...}.")
