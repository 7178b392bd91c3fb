"""Probabilities and labels drawn from them, and what it means to draw rows again."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Pair: TypeAlias = tuple[Floats, NDArray[np.int64]]


def pair_of(rows: int, classes: int, *, sharpness: float = 1.0, seed: int = 0) -> Pair:
    """Labels drawn from probabilities, which are then sharpened; at 1 they are calibrated."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(classes, 0.5), size=rows)
    y = (p.cumsum(1) > rng.random((rows, 1))).argmax(1)
    p = p**sharpness
    return p / p.sum(1, keepdims=True), y


def pairs() -> dict[str, Pair]:
    """Two classes, several, many, with ties, certain, a single class and a single row."""
    rough, y = pair_of(200, 3, seed=2)
    # Eighths are exact, so equal scores stay equal whatever is divided by their sum.
    tied = np.array([np.random.default_rng(i).multinomial(8, r) / 8 for i, r in enumerate(rough)])
    return {
        "two classes": pair_of(300, 2),
        "five, over-confident": pair_of(400, 5, sharpness=2.0),
        "twenty classes, fifty rows": pair_of(50, 20),
        "ties": (tied, y),
        "certain": (np.eye(3)[y], (y + (np.arange(200) % 4 == 0)) % 3),
        "one class": (pair_of(30, 3)[0], np.zeros(30, dtype=np.int64)),
        "one row": (np.array([[0.2, 0.8]]), np.array([0])),
    }


def weights_and_copies(rows: int, resamples: int, seed: int = 0) -> tuple[Floats, list[Floats]]:
    """Weights of resamples, and the positions that each of them stands for."""
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(rows, np.full(rows, 1 / rows), size=resamples).astype(float)
    return weights, [np.repeat(np.arange(rows), w.astype(int)) for w in weights]
