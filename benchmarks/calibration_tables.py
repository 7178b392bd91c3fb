"""Tables of the calibration benchmark, from its scores alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from calibration_methods import ENSEMBLE, MAP, METHODS, OURS
from calibration_store import APART, FIGURES, Score
from pages import markdown, spread

# Above this MAP counts as badly calibrated: the target for the ECE is about those cells.
BAD_ECE = 0.05
RESAMPLES = 2000


def of(scores: Iterable[Score], **wanted: object) -> list[Score]:
    """Scores with these attributes."""
    return [s for s in scores if all(getattr(s, name) == value for name, value in wanted.items())]


def beside_map(scores: Sequence[Score], method: str) -> list[tuple[Score, Score]]:
    """A method's scores, each with MAP's on the same cell."""
    plain = {s.cell: s for s in of(scores, method=MAP)}
    return [(s, plain[s.cell]) for s in of(scores, method=method) if s.cell in plain]


def ratio(pairs: Sequence[tuple[Score, Score]]) -> tuple[float, float, float]:
    """Geometric mean of the NLL over MAP's, with a 95 % bootstrap interval over cells."""
    logs = np.array([math.log(mine.nll / plain.nll) for mine, plain in pairs])
    drawn = np.random.default_rng(0).integers(len(logs), size=(RESAMPLES, len(logs)))
    low, high = np.quantile(logs[drawn].mean(1), [0.025, 0.975])
    return math.exp(logs.mean()), math.exp(low), math.exp(high)


def mean(pairs: Sequence[tuple[Score, Score]], figure: Callable[[Score, Score], float]) -> float:
    """The mean over cells of what is known of a figure."""
    found = [value for pair in pairs if not math.isnan(value := figure(*pair))]
    return statistics.mean(found) if found else math.nan


def methods_in(scores: Sequence[Score]) -> list[str]:
    """Methods that have a score, in the order of the table of methods."""
    found = {s.method for s in scores}
    return [name for name in METHODS if name in found]


def summary_table(scores: Sequence[Score]) -> str:
    """Every method against MAP, over all cells that have both."""
    return markdown(
        [
            "method",
            "cells",
            "NLL / MAP's (95 %)",
            "worst",
            "below, level, above",
            "accuracy, points (least)",
            f"ECE where MAP's is above {BAD_ECE:.0%}",
            "AURC / MAP's",
            "errors removed by rejecting 10 %",
        ],
        [
            summary_row(name, pairs)
            for name in methods_in(scores)
            if (pairs := beside_map(scores, name))
        ],
    )


def summary_row(name: str, pairs: Sequence[tuple[Score, Score]]) -> list[str]:
    """One method's line."""
    centre, low, high = ratio(pairs)
    below = sum(mine.high < 0 for mine, _ in pairs)
    above = sum(mine.low > 0 for mine, _ in pairs)
    bad = [pair for pair in pairs if pair[1].ece > BAD_ECE]
    points = [100 * (mine.accuracy - plain.accuracy) for mine, plain in pairs]
    return [
        name,
        str(len(pairs)),
        f"{centre:.3f} ({low:.3f} to {high:.3f})",
        f"{max(mine.nll / plain.nll for mine, plain in pairs):.3f}",
        f"{below}, {len(pairs) - below - above}, {above}",
        f"{statistics.mean(points):+.1f} ({min(points):+.1f})",
        f"{mean(bad, lambda m, _: m.ece):.3f} (MAP {mean(bad, lambda _, p: p.ece):.3f})",
        f"{mean(pairs, lambda m, p: m.aurc / p.aurc):.3f}",
        f"{100 * mean(pairs, lambda m, _: m.removed):.1f} % "
        f"(MAP {100 * mean(pairs, lambda _, p: p.removed):.1f})",
    ]


def sets_table(scores: Sequence[Score]) -> str:
    """NLL over MAP's by set, geometric mean over its cells, and MAP's own NLL."""
    names = list(dict.fromkeys(s.name for s in scores))
    others = [name for name in methods_in(scores) if name != MAP]
    rows = []
    for name in names:
        mine = of(scores, name=name)
        plain = of(mine, method=MAP)
        cells = [
            f"{ratio(pairs)[0]:.3f}" if (pairs := beside_map(mine, other)) else "–"
            for other in others
        ]
        rows.append([name, str(len(plain)), f"{statistics.mean(s.nll for s in plain):.3f}", *cells])
    return markdown(["set", "cells", "NLL of MAP", *others], rows)


def figures_table(scores: Sequence[Score]) -> str:
    """Every figure of every method, by set, rows and protocol: mean ± deviation over seeds."""
    groups = list(dict.fromkeys((s.name, s.rows, s.protocol) for s in scores))
    rows = []
    for name, count, protocol in groups:
        mine = of(scores, name=name, rows=count, protocol=protocol)
        for method in methods_in(mine):
            found = of(mine, method=method)
            figures = [spread([getattr(s, figure) for s in found], 4) for figure in FIGURES]
            rows.append([f"{name} {count} {protocol}", method, str(len(found)), *figures])
    return markdown(["cell", "method", "seeds", "accuracy", "NLL", "ECE", "Brier", "AURC"], rows)


def cells_table(scores: Sequence[Score]) -> str:
    """Ours on every cell, with the paired interval."""
    return markdown(
        ["cell", "NLL of MAP", "NLL of ours", "ratio", "ours less MAP, 95 % interval"],
        [
            [
                f"{mine.name} {mine.rows} {mine.protocol} {mine.seed}",
                f"{plain.nll:.4f}",
                f"{mine.nll:.4f}",
                f"{mine.nll / plain.nll:.3f}",
                f"{mine.less:+.4f} ({mine.low:+.4f} to {mine.high:+.4f})",
            ]
            for mine, plain in beside_map(scores, OURS)
        ],
    )


def outside_table(scores: Sequence[Score]) -> str:
    """AUROC of rows of no known class, by each doubt of each method."""
    known = [s for s in scores if not math.isnan(s.auroc)]
    return markdown(
        ["method", "cells", "1 - top probability", "entropy", "epistemic", "novelty"],
        [
            [
                method,
                str(len(found)),
                *(mean_or_dash([getattr(s, name) for s in found]) for name in APART),
            ]
            for method in methods_in(known)
            if (found := of(known, method=method))
        ],
    )


def mean_or_dash(values: Sequence[float]) -> str:
    """The mean to three digits; a dash where a method has no such doubt."""
    mean = statistics.mean(values)
    return "-" if math.isnan(mean) else f"{mean:.3f}"


def ensemble_table(scores: Sequence[Score]) -> str:
    """Ours against separately trained members, on the cells that have both."""
    members = {s.cell: s for s in of(scores, method=ENSEMBLE)}
    rows = [
        [
            f"{mine.name} {mine.rows} {mine.protocol} {mine.seed}",
            f"{plain.nll:.4f}",
            f"{mine.nll:.4f}",
            f"{members[mine.cell].nll:.4f}",
            f"{mine.nll / members[mine.cell].nll:.3f}",
        ]
        for mine, plain in beside_map(scores, OURS)
        if mine.cell in members
    ]
    return markdown(["cell", "MAP", "ours", ENSEMBLE, "ours / ensemble"], rows)
