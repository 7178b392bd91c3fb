"""What every picture shares: its colours, an empty figure, quiet axes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from posthoc_bhpeft.audit.arrays import Array
from posthoc_bhpeft.errors import ConfigError, DataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart with every common kind of colour blindness, and in grey.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00")
RIGHT, WRONG = "#0072B2", "#D55E00"
INK, SOFT, GRID, PAPER = "#222222", "#666666", "#E4E4E4", "#FFFFFF"
LEGEND: dict[str, Any] = {
    "fontsize": 9,
    "labelcolor": INK,
    "facecolor": PAPER,
    "edgecolor": "none",
    "framealpha": 0.9,
}


def empty_figure(size: tuple[float, float], title: str) -> Figure:
    """An empty figure, titled where a title is given, bound to no window and no global state."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            "drawing needs matplotlib, which is not installed; pip install 'posthoc-bhpeft[plots]'"
        ) from error
    figure = Figure(figsize=size, dpi=150, layout="constrained", facecolor=PAPER)
    if title:
        figure.suptitle(literal(title), fontsize=13, color=INK)
    return figure


def clean(axis: Axes) -> None:
    """A light grid behind, no box, quiet ticks."""
    axis.grid(color=GRID, lw=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(SOFT)
    axis.tick_params(colors=SOFT, labelsize=9)
    axis.xaxis.label.set_color(INK)
    axis.yaxis.label.set_color(INK)


def at_least_one(predictions: Mapping[str, Array]) -> int:
    """How many models there are to draw.

    Raises:
        DataError: if there is none.
    """
    if not predictions:
        raise DataError("there is no model to draw; pass {'MAP': probabilities, ...}")
    return len(predictions)


def literal(text: str) -> str:
    """Text that is drawn as it is: what stands between two dollars is no formula.

    Names come from data, and matplotlib would stop at `$5 # $6` and lose the signs of `$10-$20`.
    """
    return text.replace("$", r"\$")


def shortened(name: str, longest: int = 26) -> str:
    """A name that fits beside a line, drawn as it is (`literal`)."""
    return literal(name if len(name) <= longest else f"{name[: longest - 3]}...")
