"""Scores of the benchmark of words: what they are, the file that keeps them, and their tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from calibration_tables import beside_map, of
from pages import markdown, spread
from records import read_records, records_as_csv

from posthoc_bhpeft.batches import IGNORED

SETS = ("ag_news", "airline_tweets")
MAP, VISIBLE, OURS = "MAP", "visible precision", "ours"
METHODS = (MAP, VISIBLE, OURS)


@dataclass(frozen=True)
class Score:
    """A method on a cell.

    Attributes:
        cell: key of the cell.
        name, epochs, noise, seed: of the cell.
        method: one of `METHODS`.
        words: labelled test words.
        accuracy, nll, ece: as in `posthoc_bhpeft.audit.metrics`.
        less: NLL less that of MAP on the same words.
        error: its standard error over texts.
        precision: of the prior; 0 for MAP.
        temperature: of the predictions.
    """

    cell: str
    name: str
    epochs: int
    noise: float
    seed: int
    method: str
    words: int
    accuracy: float
    nll: float
    ece: float
    less: float
    error: float
    precision: float
    temperature: float


def losses(probabilities: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """NLL of every position `(N, T)`, of those without a label 0."""
    own = probabilities.double().gather(-1, labels.clamp_min(0)[..., None]).squeeze(-1)
    return -own.clamp_min(1e-12).log() * (labels != IGNORED)


def mean_of_texts(values: torch.Tensor, counted: torch.Tensor) -> tuple[float, float]:
    """The mean over words, and its standard error where words of a text depend on each other.

    `r = sum_n x_n / sum_n m_n` over texts with `m_n` words each; its error is the deviation of
    `x_n - r m_n` over `sqrt(N)` times their mean number of words.
    """
    sums, sizes = values.sum(1), counted.sum(1).double()
    mean = sums.sum() / sizes.sum()
    rest = sums - mean * sizes
    return float(mean), float(rest.std() / sizes.mean() / math.sqrt(len(sums)))


def load(path: Path) -> list[Score]:
    """All scores of a file."""
    return read_records(Score, path)


def as_csv(scores: Sequence[Score]) -> str:
    """By set, training, seed and method, so that the file's changes are small."""

    def place(one: Score) -> tuple[Any, ...]:
        return SETS.index(one.name), one.noise, one.epochs, one.seed, METHODS.index(one.method)

    return records_as_csv(Score, sorted(scores, key=place), digits=6)


def figures_table(scores: Sequence[Score]) -> str:
    """Every method on every training: mean ± standard deviation over seeds."""
    kinds = list(dict.fromkeys((one.name, one.epochs, one.noise) for one in scores))
    lines = []
    for name, epochs, noise in kinds:
        own = of(scores, name=name, epochs=epochs, noise=noise)
        for method in METHODS:
            if not (mine := of(own, method=method)):
                continue
            lines.append(
                [
                    name,
                    str(epochs),
                    f"{noise:.0%}",
                    str(len(mine)),
                    method,
                    spread([one.accuracy for one in mine], 3),
                    spread([one.nll for one in mine], 4),
                    spread([one.ece for one in mine], 3),
                    percent(beside_map(own, method)),
                    ", ".join(f"{one.temperature:.2f}" for one in mine),
                ]
            )
    header = ["set", "epochs", "noise", "seeds", "method", "accuracy", "NLL", "ECE"]
    return markdown([*header, "NLL beside MAP's", "temperatures"], lines)


def percent(pairs: Sequence[tuple[Score, Score]]) -> str:
    """The lowest and the highest NLL over MAP's, less one."""
    changes = [100 * (mine.nll / plain.nll - 1) for mine, plain in pairs]
    shown = dict.fromkeys(f"{change:+.2f} %" for change in (min(changes), max(changes)))
    return " to ".join(shown)


def summary_table(scores: Sequence[Score]) -> str:
    """Each method over all cells."""
    lines = []
    for method in (VISIBLE, OURS):
        pairs = beside_map(scores, method)
        changes = [mine.nll / plain.nll - 1 for mine, plain in pairs]
        clear = [mine.less / mine.error if mine.error else 0.0 for mine, _ in pairs]
        lines.append(
            [
                method,
                str(len(pairs)),
                f"{100 * sum(changes) / len(changes):+.2f} %",
                f"{100 * min(changes):+.2f} to {100 * max(changes):+.2f} %",
                f"{sum(c < -2 for c in clear)}, {sum(abs(c) <= 2 for c in clear)}, "
                f"{sum(c > 2 for c in clear)}",
            ]
        )
    header = ["method", "models", "NLL beside MAP's, mean", "lowest to highest"]
    return markdown([*header, "below, level, above"], lines)
