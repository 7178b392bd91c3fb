"""Finished cells in files that are committed, so that a later run adds only what is missing.

In `streams.csv` a line is a score: a method on a stream with a seed, after one round, on the test
rows of another. In `stream_tuning.csv` it is what one strength came to. `cell` names the file that
the cell had, with the hash of its rows, settings and method in it: a line counts only where that is
still what the cell would be. Where seconds and bytes were not kept they are empty.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path

from stream_tables import Result

from posthoc_bhpeft.streams import RoundScore

SCORES = ("accuracy", "nll", "ece")
COSTS = ("seconds", "state_bytes", "weights_bytes")
COLUMNS = ("cell", "stream", "one_test", "seed", "method", "trained", "tested", "n", "outputs")


def as_csv(results: Mapping[str, Result]) -> str:
    """Every score of the cells, by name of the cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *SCORES, *COSTS])
    for cell, r in results.items():
        spent = zip(r.seconds, r.state_bytes, r.weights_bytes, strict=True)
        costs = dict(zip(r.rounds, spent, strict=True))
        for s in r.scores:
            names = [cell, r.stream, int(r.one_test), r.seed, r.method, s.trained, s.tested]
            figures = [f"{getattr(s, name):.4f}" for name in SCORES]
            kept = ["" if math.isnan(cost) else f"{cost:.10g}" for cost in costs[s.trained]]
            writer.writerow([*names, s.n, s.outputs, *figures, *kept])
    return text.getvalue()


def from_csv(path: Path) -> dict[str, Result]:
    """The cells that a file holds, by name; none where there is no file."""
    if not path.is_file():
        return {}
    lines: dict[str, list[dict[str, str]]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            lines.setdefault(line["cell"], []).append(line)
    return {cell: _result(mine) for cell, mine in lines.items()}


def _result(lines: list[dict[str, str]]) -> Result:
    first = lines[0]
    rounds = {line["trained"]: [float(line[name] or "nan") for name in COSTS] for line in lines}
    seconds, state, weights = zip(*rounds.values(), strict=True)
    return Result(
        stream=first["stream"],
        seed=int(first["seed"]),
        method=first["method"],
        one_test=bool(int(first["one_test"])),
        rounds=tuple(rounds),
        seconds=seconds,
        state_bytes=state,
        weights_bytes=weights,
        scores=tuple(_score(line) for line in lines),
    )


def _score(line: dict[str, str]) -> RoundScore:
    figures = {name: float(line[name]) for name in SCORES}
    counts = {name: int(line[name]) for name in ("n", "outputs")}
    return RoundScore(line["trained"], line["tested"], **counts, **figures)


def tuning_as_csv(accuracies: Mapping[str, float]) -> str:
    """What each strength came to, by name of the cell."""
    lines = [f"{cell},{accuracy:.4f}" for cell, accuracy in accuracies.items()]
    return "\n".join(["cell,accuracy", *lines, ""])


def tuning_from_csv(path: Path) -> dict[str, float]:
    """What a file of `tuning_as_csv` holds; nothing where there is no file."""
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        return {line["cell"]: float(line["accuracy"]) for line in csv.DictReader(file)}
