"""Selective prediction: does doubt find the errors?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from posthoc_bhpeft.audit.arrays import Array, Floats, check_share
from posthoc_bhpeft.audit.metrics.bootstrap import Interval
from posthoc_bhpeft.audit.metrics.rows import Resampled, Rows
from posthoc_bhpeft.audit.metrics.shares import share_interval

# Errors rejected, and errors kept, from which on resamples tell how their share varies.
_ENOUGH = 10


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

    @property
    def generalized_area(self) -> float:
        """Area under errors kept over all rows (AUGRC), by trapezoids; smaller is better.

        The mean, over how many rows are kept, of the chance that a row is kept and wrong (Traub et
        al., 2024, https://arxiv.org/abs/2407.01032). AURC divides by the rows kept, so a few of the
        most certain rows weigh most; here every error weighs by how many rows doubt puts after it.
        """
        joint = np.concatenate([[0.0], self.risk * self.coverage])
        return float((joint[1:] + joint[:-1]).mean() / 2.0)


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

    @property
    def errors_removed(self) -> float:
        """Share of the errors that were rejected; NaN where there was none."""
        return 1.0 - self.errors_left / self.errors if self.errors else float("nan")


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
    errors = _errors_by_certainty(Rows.checked(probabilities, labels, uncertainty))
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
    rows = Rows.checked(probabilities, labels, uncertainty)
    rejected = check_share(share, len(rows))
    kept = len(rows) - rejected
    left = _errors_by_certainty(rows)[:kept].sum()
    return Rejection(rejected, kept, int((1.0 - rows.right).sum()), float(left))


def accuracy_at_coverage(
    probabilities: Array, labels: Array, coverage: float, uncertainty: Array | None = None
) -> float:
    """Accuracy of the most certain ``coverage`` of the rows, ties by their expectation.

    Args:
        probabilities: shape ``(N, C)``.
        labels: shape ``(N,)``.
        coverage: part of the rows that are answered, above 0 up to 1.
        uncertainty: any score that grows with doubt, shape ``(N,)``; None is one less the top
            probability.

    Raises:
        ConfigError: if ``coverage`` is out of range or would answer no row.
        DataError: if the arrays do not fit.
    """
    share = 1.0 - coverage
    return 1.0 - errors_after_rejection(probabilities, labels, uncertainty, share).error_rate_left


def aurc_of(drawn: Resampled) -> Floats:
    """`RiskCoverage.area` of each resample, ``(R,)``.

    A run of ``n`` equal scores after ``s`` rows with ``e`` errors, itself of error rate ``r``, adds
    ``sum_j (e + r j) / (s + j) = n r + (e - r s) (H(s + n) - H(s))``, harmonic numbers ``H``.
    """
    rows, wrong = drawn.ranked
    rate = np.divide(wrong, rows, out=np.zeros_like(wrong), where=rows > 0)
    after, errors = np.cumsum(rows, axis=1), np.cumsum(wrong, axis=1)
    before = after - rows
    n = len(drawn.rows)
    harmonic = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, n + 1))])
    log = harmonic[after.astype(np.int64)] - harmonic[before.astype(np.int64)]
    found: Floats = (wrong + (errors - wrong - rate * before) * log).sum(axis=1) / n
    return found


def augrc_of(drawn: Resampled) -> Floats:
    """`RiskCoverage.generalized_area` of each resample, ``(R,)``.

    An error counts once for each row that doubt puts after it, half for one put level with it:
    twice the chance, over pairs of rows, that an error is kept before the other row.
    """
    rows, wrong = drawn.ranked
    after = len(drawn.rows) - np.cumsum(rows, axis=1)
    found: Floats = (wrong * (after + rows / 2.0)).sum(axis=1) / len(drawn.rows) ** 2
    return found


def accuracy_at_of(drawn: Resampled, coverage: float) -> Floats:
    """`accuracy_at_coverage` of each resample, ``(R,)``; at least one row is kept."""
    kept = _kept(drawn, 1.0 - coverage)
    return 1.0 - _errors_kept(drawn, kept) / kept


def errors_removed_of(drawn: Resampled, share: float = 0.10) -> Floats:
    """`Rejection.errors_removed` of each resample, ``(R,)``; NaN for one without an error."""
    _, wrong = drawn.ranked
    errors = wrong.sum(axis=1)
    left = _errors_kept(drawn, _kept(drawn, share))
    found: Floats = 1.0 - np.divide(left, errors, out=np.full_like(left, np.nan), where=errors > 0)
    return found


def errors_removed_interval(whole: Resampled, level: float, share: float = 0.10) -> Interval | None:
    """`Rejection.errors_removed` of all rows with an exact interval, where few errors decide it.

    Of ``m`` errors ``k`` are rejected: a binomial count. Where either kind is few, resamples hold
    the same few again and again, and an interval from them is far too narrow. With enough of both
    it holds what it says, and this one would be too wide where many rows are wrong: since as many
    rows are rejected whatever they are, the count varies less than a binomial one.

    Args:
        whole: every row once.
        level: coverage of the interval.
        share: part of the rows to reject.

    Returns:
        The interval, NaN without an error; None where resamples tell enough.
    """
    errors = int(whole.ranked[1].sum())
    left = float(_errors_kept(whole, _kept(whole, share))[0])
    if min(left, errors - left) >= _ENOUGH:
        return None
    # A sum of shares of tied rows may miss a whole number by rounding, and leave the range.
    return share_interval(round(errors - left, 9), errors, level)


def _kept(drawn: Resampled, share: float) -> int:
    return max(len(drawn.rows) - round(share * len(drawn.rows)), 1)


def _errors_kept(drawn: Resampled, kept: int) -> Floats:
    """Expected errors among the ``kept`` most certain rows of each resample, ``(R,)``."""
    rows, wrong = (np.cumsum(values, axis=1) for values in drawn.ranked)
    zero = [0.0]
    return np.array(
        [
            np.interp(kept, np.concatenate([zero, x]), np.concatenate([zero, y]))
            for x, y in zip(rows, wrong, strict=True)
        ]
    )


def _errors_by_certainty(rows: Rows) -> Floats:
    """Errors from the most to the least certain row, tied rows sharing the mean of their tie."""
    sizes, wrong = (values[0] for values in rows.whole.ranked)
    found: Floats = np.repeat(wrong / sizes, sizes.astype(np.int64))
    return found
