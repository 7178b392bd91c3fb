"""How good, and how honest, probabilities are: pure functions of arrays, float64 inside.

Every function takes ``probabilities`` of shape ``(N, C)`` and ``labels`` of shape ``(N,)``, torch
tensors or numpy arrays on any device. Rows are normalised once more in float64, so half precision
does no harm. The predicted class is the most likely one, the first of them where two are equal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import NormalDist

import numpy as np
import torch
from numpy.typing import NDArray

from posthoc_bhpeft.audit.arrays import Array, Floats, check_pair, check_scores, check_share
from posthoc_bhpeft.errors import ConfigError, DataError

# A float32 softmax underflows to zero where the class is merely very unlikely; without a floor
# one such row makes the mean infinite. This is the smallest normal float32, 87 nats.
_FLOOR = float(np.finfo(np.float32).tiny)


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


@dataclass(frozen=True)
class RiskCoverage:
    """Share of errors among the most certain rows, for every number of rows kept.

    Attributes:
        coverage: ``k / N`` for ``k = 1 .. N``, shape ``(N,)``.
        risk: errors among the ``k`` most certain rows over ``k``, shape ``(N,)``.
    """

    coverage: Floats
    risk: Floats

    @property
    def area(self) -> float:
        """Area under the curve (AURC): the mean risk over all coverages; smaller is better."""
        return float(self.risk.mean())


@dataclass(frozen=True)
class Rejection:
    """What is left after the least certain rows were handed to somebody else.

    Attributes:
        rejected: rows rejected, the share asked for rounded to a whole row.
        kept: rows kept.
        errors: errors before.
        errors_left: expected errors among the kept rows; a fraction only where scores are tied.
    """

    rejected: int
    kept: int
    errors: int
    errors_left: float

    @property
    def error_rate_left(self) -> float:
        """Errors left over rows kept."""
        return self.errors_left / self.kept


@dataclass(frozen=True)
class Metrics:
    """The figures of one model on one set; smaller is better but for ``accuracy``.

    Attributes:
        rows: number of rows ``N``.
        accuracy: share of right predictions.
        nll: mean negative log likelihood in nats.
        brier: mean squared distance to the one-hot label, 0 to 2.
        ece: expected calibration error, 15 bins of equal width.
        ece_equal_mass: the same with 15 bins of equal mass.
        aurc: area under the risk-coverage curve.
        errors: wrong predictions.
        rejected: rows rejected as least certain.
        errors_left: expected errors among the rows kept.
    """

    rows: int
    accuracy: float
    nll: float
    brier: float
    ece: float
    ece_equal_mass: float
    aurc: float
    errors: int
    rejected: int
    errors_left: float

    def to_dict(self) -> dict[str, float | int]:
        """A plain dictionary, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Interval:
    """A difference between two models with its bootstrap interval.

    Attributes:
        estimate: the difference on all rows, second less first.
        low: lower end.
        high: upper end.
    """

    estimate: float
    low: float
    high: float


def accuracy(probabilities: Array, labels: Array) -> float:
    """Share of rows whose most likely class is the label."""
    p, y = check_pair(probabilities, labels)
    return float(_right(p, y).mean())


def negative_log_likelihood(probabilities: Array, labels: Array) -> float:
    """Mean of ``-log p_y`` in nats; probabilities below 1.2e-38 count as that."""
    p, y = check_pair(probabilities, labels)
    return float(-np.log(np.maximum(p[np.arange(len(y)), y], _FLOOR)).mean())


def brier_score(probabilities: Array, labels: Array) -> float:
    """Mean of ``sum_c (p_c - 1[c = y])^2``, from 0 to 2 (Brier, 1950, the multi-class form)."""
    p, y = check_pair(probabilities, labels)
    return float(((p - np.eye(p.shape[1])[y]) ** 2).sum(axis=1).mean())


def reliability(
    probabilities: Array,
    labels: Array,
    bins: int = 15,
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
    p, y = check_pair(probabilities, labels)
    if bins < 1:
        raise ConfigError(f"bins is {bins}, it must be 1 or more")
    confidence, right = p.max(axis=1), _right(p, y)
    edges = np.linspace(0.0, 1.0, bins + 1)
    if equal_mass:
        edges = np.unique(np.quantile(confidence, edges))
    # Right-closed bins; the smallest value belongs to the first one.
    index = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, max(len(edges) - 2, 0))
    counts = np.bincount(index)
    filled = counts > 0
    n = counts[filled]
    mean_confidence = np.bincount(index, weights=confidence)[filled] / n
    share = np.bincount(index, weights=right)[filled] / n
    low, high = _wilson(share, n, level)
    return Reliability(mean_confidence, share, low, high, n, edges)


def expected_calibration_error(
    probabilities: Array, labels: Array, bins: int = 15, *, equal_mass: bool = False
) -> float:
    """Mean gap between top confidence and accuracy over bins (see `reliability`)."""
    return reliability(probabilities, labels, bins, equal_mass=equal_mass).error


def risk_coverage(
    probabilities: Array, labels: Array, uncertainty: Array | None = None
) -> RiskCoverage:
    """Errors among the ``k`` most certain rows for every ``k`` (Geifman and El-Yaniv, 2017).

    Rows of equal uncertainty have no order among them, so each of them counts as the mean error of
    its tie: the curve is the expectation over random orders, and the order of the data is no help.

    Args:
        probabilities: shape ``(N, C)``.
        labels: shape ``(N,)``.
        uncertainty: any score that grows with doubt, shape ``(N,)``; None is one less the top
            probability.

    Raises:
        DataError: if the arrays do not fit.
    """
    p, y = check_pair(probabilities, labels)
    errors = _errors_by_certainty(p, y, uncertainty)
    k = np.arange(1, len(errors) + 1)
    return RiskCoverage(k / len(errors), np.cumsum(errors) / k)


def errors_after_rejection(
    probabilities: Array,
    labels: Array,
    uncertainty: Array | None = None,
    share: float = 0.10,
) -> Rejection:
    """Errors that stay when the least certain ``share`` of the rows is rejected.

    Ties at the border count as their expectation over random orders, as in `risk_coverage`.

    Args:
        probabilities: shape ``(N, C)``.
        labels: shape ``(N,)``.
        uncertainty: any score that grows with doubt, shape ``(N,)``; None is one less the top
            probability.
        share: part of the rows to reject, from 0 to less than 1.

    Raises:
        ConfigError: if ``share`` is out of range or would reject every row.
        DataError: if the arrays do not fit.
    """
    p, y = check_pair(probabilities, labels)
    errors = _errors_by_certainty(p, y, uncertainty)
    rejected = check_share(share, len(y))
    kept = len(y) - rejected
    return Rejection(rejected, kept, int((~_right(p, y)).sum()), float(errors[:kept].sum()))


def summary(
    probabilities: Array,
    labels: Array,
    uncertainty: Array | None = None,
    share: float = 0.10,
) -> Metrics:
    """All figures at once.

    Args:
        probabilities: shape ``(N, C)``.
        labels: shape ``(N,)``.
        uncertainty: score to rank rows by for ``aurc`` and ``errors_left``, shape ``(N,)``; None
            is one less the top probability.
        share: part of the rows to reject as least certain.

    Raises:
        ConfigError: if ``share`` is out of range.
        DataError: if the arrays do not fit.
    """
    rejection = errors_after_rejection(probabilities, labels, uncertainty, share)
    return Metrics(
        rows=rejection.kept + rejection.rejected,
        accuracy=accuracy(probabilities, labels),
        nll=negative_log_likelihood(probabilities, labels),
        brier=brier_score(probabilities, labels),
        ece=expected_calibration_error(probabilities, labels),
        ece_equal_mass=expected_calibration_error(probabilities, labels, equal_mass=True),
        aurc=risk_coverage(probabilities, labels, uncertainty).area,
        errors=rejection.errors,
        rejected=rejection.rejected,
        errors_left=rejection.errors_left,
    )


def paired_bootstrap(
    metric: Callable[[Array, Array], float],
    first: Array,
    second: Array,
    labels: Array,
    *,
    resamples: int = 2000,
    level: float = 0.95,
    generator: torch.Generator | None = None,
) -> Interval:
    """Percentile interval of ``metric(second) - metric(first)`` over resampled rows.

    Both models see the same rows in each resample, so what is hard for both cancels.

    Args:
        metric: a function of probabilities and labels, such as `negative_log_likelihood`.
        first: probabilities of the first model, ``(N, C)``.
        second: probabilities of the second model, ``(N, C)``.
        labels: shape ``(N,)``.
        resamples: number of resamples.
        level: coverage of the interval.
        generator: source of chance on the CPU; None is one with seed 0.

    Raises:
        ConfigError: if ``resamples`` is below 1 or ``level`` is not inside (0, 1).
        DataError: if the arrays do not fit.
    """
    one, y = check_pair(first, labels)
    two, _ = check_pair(second, labels)
    if one.shape != two.shape:
        raise DataError(f"first has shape {one.shape} and second {two.shape}; they must be equal")
    if resamples < 1:
        raise ConfigError(f"resamples is {resamples}, it must be 1 or more")
    tail = (1.0 - _check_level(level)) / 2.0
    source = generator or torch.Generator().manual_seed(0)
    differences = np.empty(resamples)
    for i in range(resamples):
        rows = torch.randint(len(y), (len(y),), generator=source).numpy()
        differences[i] = metric(two[rows], y[rows]) - metric(one[rows], y[rows])
    low, high = np.quantile(differences, [tail, 1.0 - tail])
    return Interval(metric(two, y) - metric(one, y), float(low), float(high))


def _right(p: Floats, y: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether the most likely class is the label, ``(N,)``."""
    right: NDArray[np.bool_] = p.argmax(axis=1) == y
    return right


def _errors_by_certainty(p: Floats, y: NDArray[np.int64], uncertainty: Array | None) -> Floats:
    """Errors from the most to the least certain row, tied rows sharing the mean of their tie."""
    scores = 1.0 - p.max(axis=1) if uncertainty is None else check_scores(uncertainty, len(y))
    _, tie, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    wrong = np.bincount(tie, weights=~_right(p, y))
    return np.repeat(wrong / sizes, sizes)


def _wilson(share: Floats, n: NDArray[np.int64], level: float) -> tuple[Floats, Floats]:
    """Wilson's score interval of a binomial share (Wilson, 1927); inside [0, 1] by construction."""
    z = NormalDist().inv_cdf(0.5 + _check_level(level) / 2.0)
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return np.maximum(centre - half, 0.0), np.minimum(centre + half, 1.0)


def _check_level(level: float) -> float:
    if not 0.0 < level < 1.0:
        raise ConfigError(f"level is {level}, it must be inside (0, 1), such as 0.95")
    return level
