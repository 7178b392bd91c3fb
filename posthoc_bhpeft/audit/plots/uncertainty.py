"""Doubt in the data against doubt in the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from posthoc_bhpeft.audit.arrays import Array, as_floats, check_scores
from posthoc_bhpeft.audit.plots.canvas import LEGEND, RIGHT, WRONG, clean, empty_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Bools: TypeAlias = NDArray[np.bool_]
Ints: TypeAlias = NDArray[np.int64]

_FEW = 400


def uncertainty_plot(
    aleatoric: Array,
    epistemic: Array,
    right: Array | None,
    *,
    title: str = "Where the doubt comes from",
    most: int | None = None,
    size: tuple[float, float] = (6.0, 4.4),
) -> Figure:
    """A dot a row: doubt in the data against doubt in the weights, right and wrong predictions.

    Args:
        aleatoric: expected entropy in nats, ``(N,)``.
        epistemic: mutual information in nats, ``(N,)``.
        right: whether the prediction was right, ``(N,)``; None where that is not known.
        title: the line on top.
        most: dots drawn at most, rows at even steps of the order they came in; None is all.
        size: in inches.

    Raises:
        DataError: if the shapes differ.
        ConfigError: if matplotlib is missing.
    """
    across = as_floats(aleatoric)
    up = check_scores(epistemic, len(across))
    check_scores(aleatoric, len(across if right is None else as_floats(right)))
    figure = empty_figure(size, title)
    axis = figure.subplots()
    for name, (chosen, colour, marker) in _groups(right, len(up)).items():
        drawn = _thinned(np.flatnonzero(chosen), len(up), most)
        axis.scatter(
            across[drawn],
            up[drawn],
            s=26 if len(up) <= _FEW else 13,
            c=colour,
            marker=marker,
            alpha=0.65,
            linewidths=0,
            label=f"{name} ({int(chosen.sum()):,})",
        )
    axis.set(xlabel="aleatoric: doubt in the data (nats)")
    axis.set(ylabel="epistemic: doubt in the weights (nats)")
    axis.set(xlim=(0, None), ylim=(0, None))
    axis.legend(loc="upper left", **LEGEND)
    clean(axis)
    return figure


def _groups(right: Array | None, rows: int) -> Mapping[str, tuple[Bools, str, str]]:
    """Which rows are drawn how, by the name of the group."""
    if right is None:
        return {"all rows": (np.ones(rows, dtype=bool), RIGHT, "o")}
    is_right = as_floats(right).astype(bool)
    return {"right": (is_right, RIGHT, "o"), "wrong": (~is_right, WRONG, "X")}


def _thinned(chosen: Ints, rows: int, most: int | None) -> Ints:
    """Every k-th of the chosen rows, the same k for each group, so that shares stay."""
    step = 1 if most is None else max(1, -(-rows // most))
    return chosen[::step]
