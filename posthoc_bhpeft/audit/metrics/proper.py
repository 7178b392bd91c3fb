"""Accuracy, macro F1, and the proper scores: NLL, and Brier with its two parts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from posthoc_bhpeft.audit.arrays import Array, Floats
from posthoc_bhpeft.audit.metrics.rows import Resampled, Rows, group_sums


@dataclass(frozen=True)
class BrierParts:
    """The Brier score in two parts that add up to it, neither below zero.

    Attributes:
        calibration: What moving each bin's probabilities to its frequencies would save.
        refinement: What is left then: how little the probabilities tell the rows apart.
    """

    calibration: float
    refinement: float

    @property
    def score(self) -> float:
        """The Brier score: the sum of the two."""
        return self.calibration + self.refinement


def accuracy(probabilities: Array, labels: Array) -> float:
    """Share of rows whose most likely class is the label."""
    return float(Rows.checked(probabilities, labels).right.mean())


def macro_f1(probabilities: Array, labels: Array) -> float:
    """Mean over classes of ``2 TP / (predicted + true)``, each class counting alike.

    A class that is neither predicted nor true in any row has no F1 and is left out; one that is
    only predicted, or only true, counts as 0. That is scikit-learn's ``f1_score(average="macro")``.
    """
    return float(macro_f1_of(Rows.checked(probabilities, labels).whole)[0])


def negative_log_likelihood(probabilities: Array, labels: Array) -> float:
    """Mean of ``-log p_y`` in nats; probabilities below 1.2e-38 count as that."""
    return float(Rows.checked(probabilities, labels).nll.mean())


def brier_score(probabilities: Array, labels: Array) -> float:
    """Mean of ``sum_c (p_c - 1[c = y])^2``, from 0 to 2 (Brier, 1950, the multi-class form)."""
    return float(Rows.checked(probabilities, labels).brier.mean())


def brier_parts(probabilities: Array, labels: Array) -> BrierParts:
    """The Brier score as calibration plus refinement, exactly.

    The score is a sum of squared residuals ``r = p_c - 1[y = c]`` over rows and classes. All
    classes share 15 bins of equal width of ``p_c``, and inside a bin of ``n`` residuals
    ``sum r^2 = n mean(r)^2 + sum (r - mean(r))^2``. The first terms are the calibration part: the
    squared gap between mean probability and frequency. The second are the refinement part. It
    holds what a table of bins often drops, the variance of the forecasts within a bin and its
    covariance with the outcome (Stephenson, Coelho and Jolliffe, 2008,
    https://doi.org/10.1175/2007WAF2006116.1), so nothing is lost for any number of bins.

    Bins of their own for each class would see more, but with many classes most of them hold a row
    or two and the calibration part is noise: 0.073 for a calibrated model of 150 classes on 4,000
    rows. Shared bins see what one map of probabilities, the same for every class, could mend; what
    differs between classes is for `classwise_calibration_error`.
    """
    whole = Rows.checked(probabilities, labels).whole
    calibration = float(brier_calibration_of(whole)[0])
    return BrierParts(calibration, float(brier_refinement_of(whole)[0]))


def accuracy_of(drawn: Resampled) -> Floats:
    """`accuracy` of each resample, ``(R,)``."""
    return drawn.mean(drawn.rows.right)


def nll_of(drawn: Resampled) -> Floats:
    """`negative_log_likelihood` of each resample, ``(R,)``."""
    return drawn.mean(drawn.rows.nll)


def brier_of(drawn: Resampled) -> Floats:
    """`brier_score` of each resample, ``(R,)``."""
    return drawn.mean(drawn.rows.brier)


def macro_f1_of(drawn: Resampled) -> Floats:
    """`macro_f1` of each resample, ``(R,)``."""
    rows, classes = drawn.rows, drawn.rows.probabilities.shape[1]
    hits = group_sums(drawn.weights * rows.right, rows.labels, classes)
    seen = group_sums(drawn.weights, rows.labels, classes)
    seen += group_sums(drawn.weights, rows.predicted, classes)
    f1 = np.divide(2.0 * hits, seen, out=np.zeros_like(hits), where=seen > 0)
    found: Floats = f1.sum(axis=1) / (seen > 0).sum(axis=1)
    return found


def brier_calibration_of(drawn: Resampled) -> Floats:
    """The calibration part of each resample, ``(R,)``."""
    sums, pairs = drawn.rows.pooled
    gaps, counts = drawn.weights @ sums, drawn.weights @ pairs
    squares = np.divide(gaps**2, counts, out=np.zeros_like(gaps), where=counts > 0)
    found: Floats = squares.sum(axis=1) / len(drawn.rows)
    return found


def brier_refinement_of(drawn: Resampled) -> Floats:
    """The refinement part of each resample, ``(R,)``."""
    return brier_of(drawn) - brier_calibration_of(drawn)
