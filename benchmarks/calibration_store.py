"""Scores in a file that is committed, so that a later run adds only what is missing.

A line of `calibration.csv` is a method on a cell. `cell` is the cell's key, with the hash of all
that decides it: a line counts only where that is still what the cell would be, and where the
method has not been revised since.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from calibration_data import Cell
from calibration_methods import MAP, METHODS, Outcome
from records import read_records, records_as_csv
from torch import Tensor

from posthoc_bhpeft.audit import metrics
from posthoc_bhpeft.audit.metrics import detection
from posthoc_bhpeft.checkpoints import write_text
from posthoc_bhpeft.predictive import Prediction

FIGURES = ("accuracy", "nll", "ece", "brier", "aurc")
APART = {
    "auroc": "confidence",
    "auroc_total": "total",
    "auroc_epistemic": "epistemic",
    "auroc_novelty": "novelty",
}
"""Figures of rows of no known class, by the doubt that they are about."""


@dataclass(frozen=True)
class Score:
    """A method on a cell; what is not known is NaN.

    Attributes:
        cell: key of the cell.
        name: of the set.
        rows: training rows.
        protocol: how long the model was trained.
        seed: of the cell.
        method: name of the method.
        revision: of the method.
        n: test rows.
        accuracy, nll, ece, brier, aurc: as in `posthoc_bhpeft.audit.metrics`.
        removed: share of the errors that go with the 10 % least confident rows.
        less, low, high: NLL less that of MAP on the same rows, with its 95 % interval.
        auroc, auroc_total, auroc_epistemic: rows of no known class told from test rows by one less
            the top probability, by entropy, and by the epistemic uncertainty.
        auroc_novelty: the same by novelty, where the method has one.
        fit_seconds, predict_seconds: of processor time.
    """

    cell: str
    name: str
    rows: int
    protocol: str
    seed: int
    method: str
    revision: int
    n: int
    accuracy: float
    nll: float
    ece: float
    brier: float
    aurc: float
    removed: float
    less: float
    low: float
    high: float
    auroc: float
    auroc_total: float
    auroc_epistemic: float
    auroc_novelty: float
    fit_seconds: float
    predict_seconds: float


def score(cell: Cell, method: str, found: Outcome, plain: Tensor) -> Score:
    """One method's figures.

    Args:
        cell: the trained model.
        method: its name.
        found: what it said.
        plain: MAP's probabilities of the same rows.
    """
    p, labels = found.test.probabilities, found.test.labels
    assert p is not None
    assert labels is not None
    told = metrics.summary(p, labels)
    less = metrics.paired_bootstrap(metrics.negative_log_likelihood, plain, p, labels)
    return Score(
        cell=cell.key,
        name=cell.name,
        rows=cell.rows,
        protocol=cell.protocol,
        seed=cell.seed,
        method=method,
        revision=METHODS[method].revision,
        n=len(labels),
        **{name: float(getattr(told, name)) for name in FIGURES},
        removed=1 - told.errors_left / told.errors if told.errors else math.nan,
        less=less.estimate,
        low=less.low,
        high=less.high,
        **told_apart(found),
        fit_seconds=found.seconds[0],
        predict_seconds=found.seconds[1],
    )


def scored(cell: Any, found: Mapping[str, Outcome]) -> dict[str, Score]:
    """Every method's figures on a cell, MAP's among them."""
    plain = found[MAP].test.probabilities
    assert plain is not None
    return {method: score(cell, method, one, plain) for method, one in found.items()}


def complete(
    store: Path,
    cells: Iterable[Any],
    methods: Sequence[str],
    run: Callable[[Any, list[str]], Mapping[str, Score]],
    ordered: Callable[[Sequence[Score]], list[Score]],
) -> None:
    """Run what the file does not have yet, and keep every cell as soon as it is done.

    Args:
        store: the file of scores.
        cells: with a key and a label.
        methods: wanted on each of them.
        run: scores the methods on a cell; MAP always comes along, to be compared with.
        ordered: how the scores stand in the file.
    """
    for cell in cells:
        known = load(store)
        missing = [method for method in methods if (cell.key, method) not in known]
        if not missing:
            continue
        start = time.perf_counter()
        found = run(cell, list(dict.fromkeys([MAP, *missing])))
        # Read again: another process may have added cells meanwhile.
        known = {**load(store), **{(cell.key, method): one for method, one in found.items()}}
        write_text(store, as_csv(ordered(list(known.values()))))
        told = ", ".join(f"{method} {one.nll:.4f}" for method, one in found.items())
        print(f"{cell.label}: {told} after {time.perf_counter() - start:.0f} s", flush=True)


def told_apart(found: Outcome) -> dict[str, float]:
    """How well each doubt tells rows of no known class from test rows."""
    if found.outside is None:
        return dict.fromkeys(APART, math.nan)
    inside, outside = doubts_of(found.test), doubts_of(found.outside)
    return {
        name: detection.auroc(inside[doubt], outside[doubt]) if doubt in inside else math.nan
        for name, doubt in APART.items()
    }


def doubts_of(said: Prediction) -> dict[str, Any]:
    """Every doubt that a prediction has, by name."""
    assert said.probabilities is not None
    doubts = {"confidence": 1 - said.probabilities.max(-1).values, **said.uncertainties}
    return {name: doubt.double().numpy() for name, doubt in doubts.items()}


def load(path: Path) -> dict[tuple[str, str], Score]:
    """Scores by key of the cell and method; those of an older revision are left out."""
    return {(s.cell, s.method): s for s in read_records(Score, path) if is_current(s)}


def is_current(found: Score) -> bool:
    """Whether the method is still what it was."""
    return found.method in METHODS and METHODS[found.method].revision == found.revision


def as_csv(scores: Iterable[Score]) -> str:
    """All scores, in the order given."""
    return records_as_csv(Score, scores, digits=5)


def keep(folder: Path, cell: Cell, found: Mapping[str, Outcome]) -> None:
    """Put what the methods said beside the checkpoints, for a closer look."""
    folder.mkdir(parents=True, exist_ok=True)
    for method, one in found.items():
        file = folder / f"{cell.key}-{method.replace(' ', '-')}.pt"
        torch.save({"test": vars(one.test), "outside": one.outside and vars(one.outside)}, file)
