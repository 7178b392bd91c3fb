"""Finished cells as a picture."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from stream_tables import Result, names, pick

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7")
_STYLES = ("-", "--", ":")


def picture(results: Sequence[Result], methods: Sequence[str]) -> Figure:
    """Accuracy on every past round against rounds, a panel a stream, mean over seeds.

    Args:
        results: of any streams.
        methods: the first is drawn solid, the second dashed; further ones appear only where there
            is one test set, and so one line a method.
    """
    from matplotlib.figure import Figure

    streams = names(r.stream for r in results)
    columns, rows = min(len(streams), 2), math.ceil(len(streams) / 2)
    figure = Figure(figsize=(4.8 * columns, 3.4 * rows + 0.4), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, stream in zip(panels, streams, strict=False):
        _panel(axes, pick(results, stream=stream), methods)
    for axes in panels[len(streams) :]:
        axes.set_visible(False)
    words = ("solid", "dashed")
    said = (f"{word}: {method}" for word, method in zip(words, methods, strict=False))
    figure.suptitle(f"Accuracy on every round so far ({', '.join(said)})", fontsize=11)
    return figure


def _panel(axes: Axes, results: Sequence[Result], methods: Sequence[str]) -> None:
    draw = _one_line_a_method if results[0].one_test else _one_line_a_round
    draw(axes, results, methods)
    axes.set(title=results[0].stream, xlabel="rounds learnt", ylabel="accuracy, %")
    axes.set_xticks(range(1, len(results[0].rounds) + 1))
    axes.grid(color="#E4E4E4", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        axes.legend(fontsize=7, frameon=False)


def _one_line_a_method(axes: Axes, results: Sequence[Result], methods: Sequence[str]) -> None:
    """Where every round has the same test rows."""
    for method, style in zip(methods, _STYLES, strict=False):
        if mine := pick(results, method=method):
            _line(axes, mine, 0, 0, style, _COLOURS[0], method)


def _one_line_a_round(axes: Axes, results: Sequence[Result], methods: Sequence[str]) -> None:
    """A line for each tested round, from when it was learnt; the colour says which."""
    same = len({r.rounds for r in results}) == 1
    for method, style in zip(methods[:2], _STYLES, strict=False):
        mine = pick(results, method=method)
        for place in range(len(results[0].rounds) if mine else 0):
            name = mine[0].rounds[place] if same else f"task {place + 1}"
            label = name if style == _STYLES[0] else None
            _line(axes, mine, place, place, style, _COLOURS[place % len(_COLOURS)], label)


def _line(
    axes: Axes,
    mine: Sequence[Result],
    first: int,
    place: int,
    style: str,
    colour: str,
    label: str | None,
) -> None:
    """Mean over seeds of the accuracy on the round at `place`, from round `first` on."""
    rounds = range(first, len(mine[0].rounds))
    curve = [100 * statistics.mean(r.past(i)[place].accuracy for r in mine) for i in rounds]
    numbers = [i + 1 for i in rounds]
    axes.plot(numbers, curve, style, color=colour, marker="o", markersize=3, label=label)
