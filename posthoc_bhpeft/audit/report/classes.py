"""What is taken for what: a table of all classes where they are few, else the worst pairs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from posthoc_bhpeft.audit.predictions import Predictions

MOST_CLASSES = 10
MOST_PAIRS = 15


@dataclass(frozen=True)
class Confusion:
    """Rows of one class that were taken for another.

    Attributes:
        true: Name of the class.
        predicted: What it was taken for.
        rows: How many.
        share: Of all rows of the class.
    """

    true: str
    predicted: str
    rows: int
    share: float


@dataclass(frozen=True)
class PerClass:
    """How one class fares.

    Attributes:
        name: Of the class.
        rows: That have it.
        predicted: Rows that were given it.
        recall: Share of its rows that were found; NaN where there is none.
        precision: Share of rows given it that have it; NaN where there is none.
    """

    name: str
    rows: int
    predicted: int
    recall: float
    precision: float


def counts(predictions: Predictions) -> NDArray[np.int64]:
    """Rows by true class (down) and predicted class (across), ``(C, C)``; there must be labels."""
    size = predictions.probabilities.shape[1]
    table = np.zeros((size, size), dtype=np.int64)
    assert predictions.labels is not None
    np.add.at(table, (predictions.labels, predictions.predicted), 1)
    return table


def confusions(table: NDArray[np.int64], names: tuple[str, ...]) -> tuple[Confusion, ...]:
    """The most frequent confusions, the most rows first."""
    wrong = table - np.diag(np.diag(table))
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_PAIRS]
    pairs = [divmod(int(place), len(table)) for place in order]
    return tuple(
        Confusion(names[t], names[p], int(wrong[t, p]), float(wrong[t, p] / table[t].sum()))
        for t, p in pairs
        if wrong[t, p]
    )


def per_class(table: NDArray[np.int64], names: tuple[str, ...]) -> tuple[PerClass, ...]:
    """Every class that occurs or was predicted, the lowest recall first."""
    hits, rows, predicted = np.diag(table), table.sum(axis=1), table.sum(axis=0)
    found = [
        PerClass(
            names[c],
            int(rows[c]),
            int(predicted[c]),
            float(hits[c] / rows[c]) if rows[c] else float("nan"),
            float(hits[c] / predicted[c]) if predicted[c] else float("nan"),
        )
        for c in range(len(table))
        if rows[c] or predicted[c]
    ]
    return tuple(sorted(found, key=lambda one: (np.isnan(one.recall), one.recall)))
