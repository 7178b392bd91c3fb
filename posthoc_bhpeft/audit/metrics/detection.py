"""Rows from elsewhere: does a score of uncertainty tell them from rows like those trained on?

Every function takes the scores of rows inside, ``(N,)``, and outside the distribution, ``(M,)``;
scores grow with doubt.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from posthoc_bhpeft.audit.arrays import Array, Floats, as_floats, check_scores
from posthoc_bhpeft.errors import DataError


@dataclass(frozen=True, eq=False)
class Scored:
    """Scores of rows inside and outside, drawn again ``R`` times.

    Attributes:
        inside: Scores, ``(N,)``.
        outside: Scores, ``(M,)``.
        inside_weights: How often each row inside was drawn, ``(R, N)``.
        outside_weights: The same outside, ``(R, M)``.
    """

    inside: Floats
    outside: Floats
    inside_weights: Floats
    outside_weights: Floats

    @classmethod
    def whole(cls, inside: Array, outside: Array) -> Scored:
        """Every row once.

        Raises:
            DataError: If one side has no row.
            NonFiniteError: If a score is NaN.
        """
        one, two = (check_scores(s, as_floats(s).size) for s in (inside, outside))
        if not len(one) or not len(two):
            raise DataError(
                f"{len(one)} rows inside and {len(two)} outside; to tell them apart takes at least "
                "one of each"
            )
        return cls(one, two, np.ones((1, len(one))), np.ones((1, len(two))))

    @cached_property
    def by_score(self) -> tuple[Floats, Floats]:
        """Rows inside and outside of each score, from the smallest, ``(R, U)`` each."""
        values = np.concatenate([self.inside, self.outside])
        order = np.argsort(values, kind="stable")
        ordered = values[order]
        starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
        sides = []
        for weights, first in ((self.inside_weights, 0), (self.outside_weights, len(self.inside))):
            padded = np.zeros((len(weights), len(values)))
            padded[:, first : first + weights.shape[1]] = weights
            sides.append(np.add.reduceat(padded[:, order], starts, axis=1))
        return sides[0], sides[1]


def auroc(inside: Array, outside: Array) -> float:
    """Chance that a row outside scores above one inside, a tie counting half; 0.5 is chance."""
    return float(auroc_of(Scored.whole(inside, outside))[0])


def aupr(inside: Array, outside: Array) -> float:
    """Average precision of finding rows outside: the mean precision at each of them, by recall.

    ``sum_k (recall_k - recall_(k-1)) precision_k`` from the largest score down, as in scikit-learn.
    Chance is the share of rows outside, ``M / (N + M)``, so it compares only on the same data.
    """
    return float(aupr_of(Scored.whole(inside, outside))[0])


def fpr95(inside: Array, outside: Array) -> float:
    """Share of rows outside that pass where 95 % of the rows inside do; 0.95 is chance.

    Rows inside are the positives, as usual (Liang et al., 2018, https://arxiv.org/abs/1706.02690):
    the threshold is the smallest score that at least 95 % of the rows inside do not exceed.
    """
    return float(fpr95_of(Scored.whole(inside, outside))[0])


def auroc_of(scored: Scored) -> Floats:
    """`auroc` of each resample, ``(R,)``."""
    inside, outside = scored.by_score
    below = np.cumsum(inside, axis=1) - inside / 2.0
    found: Floats = (outside * below).sum(axis=1) / (inside.sum(axis=1) * outside.sum(axis=1))
    return found


def aupr_of(scored: Scored) -> Floats:
    """`aupr` of each resample, ``(R,)``."""
    inside, outside = (side[:, ::-1] for side in scored.by_score)
    hits, flagged = np.cumsum(outside, axis=1), np.cumsum(inside + outside, axis=1)
    precision = np.divide(hits, flagged, out=np.zeros_like(hits), where=flagged > 0)
    found: Floats = (outside * precision).sum(axis=1) / hits[:, -1]
    return found


def fpr95_of(scored: Scored) -> Floats:
    """`fpr95` of each resample, ``(R,)``."""
    inside, outside = (np.cumsum(side, axis=1) for side in scored.by_score)
    # Whole numbers of rows, so the product may be off by a rounding error only.
    at = (inside >= 0.95 * inside[:, -1:] - 1e-9).argmax(axis=1)
    found: Floats = outside[np.arange(len(outside)), at] / outside[:, -1]
    return found
