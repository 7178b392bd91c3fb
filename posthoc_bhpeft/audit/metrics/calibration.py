"""Calibration: is what is said with confidence 0.9 right nine times in ten?

Every binned error here is a norm of the gaps between confidence and accuracy, and a norm of noise
is never zero: the error of a perfectly calibrated model is above 0 on any finite data. The
functions called ``*_excess`` say, for each resample, by how much noise may have lifted it.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from posthoc_bhpeft.audit.arrays import Array, Floats
from posthoc_bhpeft.audit.metrics.bootstrap import check_level
from posthoc_bhpeft.audit.metrics.rows import BINS, Bins, Resampled, Rows, bins_of
from posthoc_bhpeft.errors import ConfigError

# A gap of more standard errors than this has the sign it seems to have; a smaller one may not.
CLEAR = 3.0


@dataclass(frozen=True)
class Reliability:
    """Confidence against accuracy in bins, with a band for the accuracy; empty bins are left out.

    Attributes:
        confidence: mean confidence of each bin, shape ``(B,)``.
        accuracy: share of right predictions of each bin, ``(B,)``.
        low: lower end of the Wilson interval of the accuracy, ``(B,)``.
        high: upper end of it, ``(B,)``.
        counts: rows in each bin, ``(B,)``.
        edges: borders of all bins asked for, empty ones included.
    """

    confidence: Floats
    accuracy: Floats
    low: Floats
    high: Floats
    counts: NDArray[np.int64]
    edges: Floats

    @property
    def error(self) -> float:
        """Expected calibration error: the gap between the two, weighted by the counts."""
        gap = np.abs(self.accuracy - self.confidence)
        return float(gap @ self.counts / self.counts.sum())

    @property
    def largest(self) -> float:
        """Maximum calibration error: the largest gap of any bin."""
        return float(np.abs(self.accuracy - self.confidence).max())


def reliability(
    probabilities: Array,
    labels: Array,
    bins: int = BINS,
    *,
    equal_mass: bool = False,
    level: float = 0.95,
) -> Reliability:
    """Bins of the top confidence with the accuracy and its Wilson interval in each.

    Equal width: ``((b - 1) / B, b / B]`` (Guo et al., 2017). Equal mass: borders at quantiles, so
    equal confidences stay in one bin and the order of the rows does not matter.

    Args:
        probabilities: shape ``(N, C)``.
        labels: shape ``(N,)``.
        bins: number of bins ``B``; those without a row are left out of the result.
        equal_mass: quantile borders instead of equal widths.
        level: coverage of the interval.

    Raises:
        ConfigError: if ``bins`` is below 1 or ``level`` is not inside (0, 1).
        DataError: if the arrays do not fit.
    """
    rows = Rows.checked(probabilities, labels)
    if bins < 1:
        raise ConfigError(f"bins is {bins}, it must be 1 or more")
    found = bins_of(rows.confidence, bins, equal_mass=equal_mass)
    counts = np.bincount(found.index)
    filled = counts > 0
    n = counts[filled]
    confidence = np.bincount(found.index, weights=rows.confidence)[filled] / n
    share = np.bincount(found.index, weights=rows.right)[filled] / n
    low, high = wilson(share, n, level)
    return Reliability(confidence, share, low, high, n, found.edges)


def expected_calibration_error(
    probabilities: Array, labels: Array, bins: int = BINS, *, equal_mass: bool = False
) -> float:
    """Mean gap between top confidence and accuracy over bins (see `reliability`)."""
    return reliability(probabilities, labels, bins, equal_mass=equal_mass).error


def maximum_calibration_error(
    probabilities: Array, labels: Array, bins: int = BINS, *, equal_mass: bool = True
) -> float:
    """Largest gap between top confidence and accuracy of any bin (Naeini et al., 2015).

    Bins of equal mass by default: with equal widths the largest gap is nearly always that of a bin
    with a row or two, and says how few they were.
    """
    return reliability(probabilities, labels, bins, equal_mass=equal_mass).largest


def classwise_calibration_error(probabilities: Array, labels: Array) -> float:
    """Calibration error of each class's own probability, averaged over the classes.

    ``1/C sum_c sum_b n_cb / N |mean p_c - share of c|`` over 15 bins of equal width of ``p_c``
    (Kull et al., 2019, https://arxiv.org/abs/1910.12656). Every row counts for every class, so with
    many classes nearly all terms are close to zero and so is the mean: compare it only between
    models of the same classes.
    """
    return float(classwise_of(Rows.checked(probabilities, labels).whole)[0])


def ece_of(drawn: Resampled) -> Floats:
    """ECE with 15 bins of equal width of each resample, ``(R,)``."""
    return _mean_gap(drawn, drawn.rows.width_bins)


def ece_excess(drawn: Resampled) -> Floats:
    """How much of `ece_of` may be noise, ``(R,)``."""
    return _mean_gap_excess(drawn, drawn.rows.width_bins)


def ece_mass_of(drawn: Resampled) -> Floats:
    """ECE with 15 bins of equal mass of each resample, ``(R,)``, with the bins of all rows."""
    return _mean_gap(drawn, drawn.rows.mass_bins)


def ece_mass_excess(drawn: Resampled) -> Floats:
    """How much of `ece_mass_of` may be noise, ``(R,)``."""
    return _mean_gap_excess(drawn, drawn.rows.mass_bins)


def classwise_of(drawn: Resampled) -> Floats:
    """`classwise_calibration_error` of each resample, ``(R,)``."""
    gaps, _ = drawn.class_bins
    classes = drawn.rows.probabilities.shape[1]
    found: Floats = np.abs(gaps).sum(axis=1) / (len(drawn.rows) * classes)
    return found


def classwise_excess(drawn: Resampled) -> Floats:
    """How much of `classwise_of` may be noise, ``(R,)``."""
    gaps, _ = drawn.rows.whole.class_bins
    moved = directional(drawn.class_bins[0] - gaps, gaps, drawn.rows.class_errors)
    found: Floats = moved.sum(axis=1) / (len(drawn.rows) * drawn.rows.probabilities.shape[1])
    return found


def mce_of(drawn: Resampled) -> Floats:
    """`maximum_calibration_error` of each resample, ``(R,)``, with the bins of all rows."""
    found: Floats = np.abs(_gap_means(drawn)).max(axis=1)
    return found


def mce_excess(drawn: Resampled) -> Floats:
    """How much of `mce_of` may be noise, ``(R,)``: only bins that may be the largest count."""
    bins, whole = drawn.rows.mass_bins, drawn.rows.whole
    # Where many rows are equally sure, a bin may have none: it cannot be off, nor be the largest.
    gap, counts = _gap_means(whole)[0], whole.counts(bins)[0]
    error = np.divide(_errors(drawn.rows, bins), counts, out=np.zeros_like(gap), where=counts > 0)
    rivals = np.abs(gap) + CLEAR * error >= (np.abs(gap) - CLEAR * error).max()
    moved = directional(_gap_means(drawn) - gap, gap, error)
    found: Floats = moved[:, rivals].max(axis=1)
    return found


def directional(moved: Floats, at: Floats, error: Floats) -> Floats:
    """How far ``|x|`` goes up when ``x`` moves from ``at``, whose standard error is known.

    ``sign(at) moved`` where ``at`` is clearly not zero, ``|moved|`` where it may be: the
    directional derivative of the absolute value, estimated (Fang and Santos, 2019,
    https://arxiv.org/abs/1404.3763).
    """
    clear = np.abs(at) > CLEAR * error
    found: Floats = np.where(clear, np.sign(at) * moved, np.abs(moved))
    return found


def wilson(share: Floats, n: NDArray[np.int64], level: float) -> tuple[Floats, Floats]:
    """Wilson's score interval of a binomial share (Wilson, 1927); inside [0, 1] by construction."""
    z = NormalDist().inv_cdf(0.5 + check_level(level) / 2.0)
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return np.maximum(centre - half, 0.0), np.minimum(centre + half, 1.0)


def _mean_gap(drawn: Resampled, bins: Bins) -> Floats:
    found: Floats = np.abs(drawn.gaps(bins)).sum(axis=1) / len(drawn.rows)
    return found


def _mean_gap_excess(drawn: Resampled, bins: Bins) -> Floats:
    gaps = drawn.rows.whole.gaps(bins)
    moved = directional(drawn.gaps(bins) - gaps, gaps, _errors(drawn.rows, bins))
    found: Floats = moved.sum(axis=1) / len(drawn.rows)
    return found


def _gap_means(drawn: Resampled) -> Floats:
    """Mean gap of each bin of equal mass, ``(R, B)``; zero for one that was not drawn at all."""
    gaps, counts = drawn.gaps(drawn.rows.mass_bins), drawn.counts(drawn.rows.mass_bins)
    return np.divide(gaps, counts, out=np.zeros_like(gaps), where=counts > 0)


def _errors(rows: Rows, bins: Bins) -> Floats:
    """Standard error of the sum of gaps in each bin, ``(B,)``."""
    squares = np.bincount(bins.index, weights=rows.gap**2, minlength=bins.count)
    found: Floats = np.sqrt(squares)
    return found
