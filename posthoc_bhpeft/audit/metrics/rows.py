"""Rows with everything a metric asks of them, and the same rows drawn again.

A resample is a weight for each row: how often it was drawn. Metrics are functions of weights, so a
thousand resamples are a matrix and no probability is copied.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from posthoc_bhpeft.audit.arrays import Array, Floats, as_floats, check_pair, check_scores
from posthoc_bhpeft.audit.predictions import CONFIDENCE, Predictions
from posthoc_bhpeft.errors import DataError

BINS = 15
"""Bins of every binned calibration error of the catalogue (Guo et al., 2017)."""

Positions = NDArray[np.int64]

# A float32 softmax underflows to zero where the class is merely very unlikely; without a floor
# one such row makes the mean infinite. This is the smallest normal float32, 87 nats.
_FLOOR = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, eq=False)
class Bins:
    """Which bin each row is in.

    Attributes:
        index: Bin of each row, ``(N,)``.
        edges: Borders, one more than there are bins.
    """

    index: Positions
    edges: Floats

    @property
    def count(self) -> int:
        """Number of bins, empty ones included; a single edge is one bin."""
        return max(len(self.edges) - 1, 1)


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows, checked, with what metrics are made of.

    Attributes:
        probabilities: ``(N, C)``, float64, rows that sum to one.
        labels: ``(N,)``.
        score: Uncertainty that rows are ranked by, growing with doubt, ``(N,)``.
    """

    probabilities: Floats
    labels: Positions
    score: Floats

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def of(cls, predictions: Predictions, score: str = CONFIDENCE) -> Rows:
        """From predictions with labels.

        Raises:
            DataError: If there are no labels, no score of that name, or the arrays do not fit.
            NonFiniteError: If a probability or a score is NaN.
        """
        if predictions.labels is None:
            raise DataError(
                "These predictions have no labels, so nothing can be measured. Give labels, or ask "
                "for `detect` or drift, which need none."
            )
        doubt = None if score == CONFIDENCE else predictions.score(score)
        return cls.checked(predictions.probabilities, predictions.labels, doubt)

    @classmethod
    def checked(cls, probabilities: Array, labels: Array, uncertainty: Array | None = None) -> Rows:
        """From arrays; without an uncertainty it is one less the top probability."""
        p, y = check_pair(probabilities, labels)
        score = 1.0 - p.max(axis=1) if uncertainty is None else check_scores(uncertainty, len(y))
        return cls(p, y, score)

    @cached_property
    def predicted(self) -> Positions:
        """The most likely class, the first of them where two are equal, ``(N,)``."""
        found: Positions = self.probabilities.argmax(axis=1)
        return found

    @cached_property
    def confidence(self) -> Floats:
        """The top probability, ``(N,)``."""
        found: Floats = self.probabilities.max(axis=1)
        return found

    @cached_property
    def right(self) -> Floats:
        """One where the most likely class is the label, else zero, ``(N,)``."""
        found: Floats = (self.predicted == self.labels).astype(np.float64)
        return found

    @cached_property
    def gap(self) -> Floats:
        """``confidence - right``, ``(N,)``: calibration errors are sums of it."""
        found: Floats = self.confidence - self.right
        return found

    @cached_property
    def nll(self) -> Floats:
        """``-log p_y`` in nats, ``(N,)``; probabilities below 1.2e-38 count as that."""
        chosen = self.probabilities[np.arange(len(self)), self.labels]
        found: Floats = -np.log(np.maximum(chosen, _FLOOR))
        return found

    @cached_property
    def brier(self) -> Floats:
        """``sum_c (p_c - 1[c = y])^2``, ``(N,)``."""
        p = self.probabilities
        chosen = p[np.arange(len(self)), self.labels]
        found: Floats = (p**2).sum(axis=1) - chosen**2 + (1.0 - chosen) ** 2
        return found

    @cached_property
    def width_bins(self) -> Bins:
        """Bins of equal width of the confidence."""
        return bins_of(self.confidence, BINS)

    @cached_property
    def mass_bins(self) -> Bins:
        """Bins of equal mass of the confidence, fixed by these rows in every resample."""
        return bins_of(self.confidence, BINS, equal_mass=True)

    @cached_property
    def class_errors(self) -> Floats:
        """Standard error of each sum of gaps in `Resampled.class_bins`, ``(K,)``."""
        found = []
        for c in range(self.probabilities.shape[1]):
            p = self.probabilities[:, c]
            _, index = np.unique(bins_of(p, BINS).index, return_inverse=True)
            found.append(np.bincount(index, weights=(p - (self.labels == c)) ** 2))
        return np.sqrt(np.concatenate(found))

    @cached_property
    def pooled(self) -> tuple[Floats, Floats]:
        """Each row's sum of ``p_c - 1[y = c]``, and how many, by bin of ``p_c``, ``(N, B)`` each.

        All classes share the bins.
        """
        n, classes = self.probabilities.shape
        gap = self.probabilities - (np.arange(classes) == self.labels[:, None])
        bin_of = bins_of(self.probabilities.ravel(), BINS).index
        cell = np.repeat(np.arange(n), classes) * BINS + bin_of
        sums = np.bincount(cell, weights=gap.ravel(), minlength=n * BINS)
        counts = np.bincount(cell, minlength=n * BINS)
        return as_floats(sums.reshape(n, BINS)), as_floats(counts.reshape(n, BINS))

    @cached_property
    def ranking(self) -> tuple[Positions, Positions]:
        """Rows from the most certain, ``(N,)``, and where each run of equal scores starts."""
        order = np.argsort(self.score, kind="stable")
        ordered = self.score[order]
        starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
        return order, starts

    @cached_property
    def whole(self) -> Resampled:
        """Every row once."""
        return Resampled(self, np.ones((1, len(self))))


@dataclass(frozen=True, eq=False)
class Resampled:
    """Rows drawn again, ``R`` times.

    Attributes:
        rows: The rows.
        weights: How often each was drawn, ``(R, N)``; every line sums to ``N``.
    """

    rows: Rows
    weights: Floats

    def mean(self, values: Floats) -> Floats:
        """Mean over the rows of each resample, ``(R,)``."""
        found: Floats = self.weights @ values / len(self.rows)
        return found

    def gaps(self, bins: Bins) -> Floats:
        """Sum of ``confidence - right`` in each bin, ``(R, B)``."""
        return group_sums(self.weights * self.rows.gap, bins.index, bins.count)

    def counts(self, bins: Bins) -> Floats:
        """Rows in each bin, ``(R, B)``."""
        return group_sums(self.weights, bins.index, bins.count)

    @cached_property
    def class_bins(self) -> tuple[Floats, Floats]:
        """Sums of ``p_c - 1[y = c]`` and rows by class and bin of ``p_c``, ``(R, K)`` each.

        ``K`` counts the bins, over all classes, that any row is in.
        """
        found = [self._of_class(c) for c in range(self.rows.probabilities.shape[1])]
        return np.concatenate([g for g, _ in found], 1), np.concatenate([n for _, n in found], 1)

    @cached_property
    def ranked(self) -> tuple[Floats, Floats]:
        """Rows and errors in each run of equal scores, the most certain first, ``(R, U)`` each."""
        order, starts = self.rows.ranking
        drawn = self.weights[:, order]
        wrong = drawn * (1.0 - self.rows.right[order])
        return np.add.reduceat(drawn, starts, axis=1), np.add.reduceat(wrong, starts, axis=1)

    def _of_class(self, c: int) -> tuple[Floats, Floats]:
        p = self.rows.probabilities[:, c]
        filled, index = np.unique(bins_of(p, BINS).index, return_inverse=True)
        inside = (index[:, None] == np.arange(len(filled))).astype(np.float64)
        gap = p - (self.rows.labels == c)
        both = self.weights @ np.concatenate([inside * gap[:, None], inside], axis=1)
        return both[:, : len(filled)], both[:, len(filled) :]


def bins_of(values: Floats, bins: int, *, equal_mass: bool = False) -> Bins:
    """Right-closed bins of values in [0, 1]; the smallest value belongs to the first one."""
    edges = np.linspace(0.0, 1.0, bins + 1)
    if equal_mass:
        edges = np.unique(np.quantile(values, edges))
    last = max(len(edges) - 2, 0)
    return Bins(np.clip(np.searchsorted(edges, values, side="left") - 1, 0, last), edges)


def group_sums(values: Floats, group: Positions, groups: int) -> Floats:
    """Sums of the columns ``(R, N)`` by group, ``(R, groups)``; a group without any is zero."""
    order = np.argsort(group, kind="stable")
    present, starts = np.unique(group[order], return_index=True)
    found = np.zeros((len(values), groups))
    found[:, present] = np.add.reduceat(values[:, order], starts, axis=1)
    return found
