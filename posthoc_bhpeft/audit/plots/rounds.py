"""What a stream remembers, round by round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from posthoc_bhpeft.audit.plots.canvas import INK, LEGEND, clean, empty_figure, shortened
from posthoc_bhpeft.errors import DataError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_IN_LEGEND = 14


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
    figure = empty_figure((max(7.5, 2.5 + 0.6 * len(rounds)), 4.4), title)
    axis = figure.subplots()
    places = np.arange(1, len(rounds) + 1)
    number = {name: place for place, name in zip(places, rounds, strict=True)}
    for row, name, colour in zip(table, accuracies, _shades(len(table)), strict=True):
        label = f"{number[name]}  {shortened(name)}" if name in number else shortened(name)
        axis.plot(places, row, "o-", color=colour, lw=1.8, ms=4.5, label=label)
    counts = np.isfinite(table).sum(axis=0)
    mean = np.where(counts, np.nansum(table, axis=0) / np.maximum(counts, 1), np.nan)
    axis.plot(places, mean, "--", color=INK, lw=2, label="mean of those learnt")
    axis.set(xlabel="last round learnt", ylabel="accuracy on test rows (%)", xticks=places)
    axis.set_xlim(0.8, len(rounds) + 0.2)
    clean(axis)
    if len(table) <= _MOST_IN_LEGEND:
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), title="test rows of", **LEGEND)
    return figure


def _shades(count: int) -> list[str]:
    """Colours from the first round to the last, in an order that can be seen."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colormaps["viridis"](share)) for share in np.linspace(0.05, 0.85, count)]
