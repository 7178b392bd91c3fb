"""How frequent the true classes are now, from predictions alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from posthoc_bhpeft.audit.arrays import Floats
from posthoc_bhpeft.audit.metrics import Interval

_LEAST_SINGULAR = 0.05
_RESAMPLES = 1000


def estimate_labels(
    now: NDArray[np.int64],
    reference: NDArray[np.int64],
    rng: np.random.Generator,
    *,
    level: float = 0.95,
) -> tuple[Interval, ...] | None:
    r"""Shares of the C true classes now, with bootstrap intervals: black-box shift estimation.

    `q = C^{-1} mu`, `C_ij` the share predicted `i` of the reference rows of class `j`, `mu_i` the
    share predicted `i` now (Lipton et al., 2018, arXiv:1802.03916); negative shares become 0 and
    the sum 1. It holds if only the mix of classes changed: rows of one class must be such as they
    were.

    Args:
        now: Counts of the predicted classes now, `(C,)`.
        reference: Counts of the reference, predicted by true class, `(C, C)`.
        rng: Source of chance.
        level: Coverage.

    Returns:
        One interval a class; `None` where a class has no reference row, or predictions tell
        classes apart too badly (smallest singular value of `C` below 0.05) to be inverted.
    """
    if (reference.sum(axis=0) == 0).any() or now.sum() == 0:
        return None
    rates = reference / reference.sum(axis=0)
    if np.linalg.svd(rates, compute_uv=False).min() < _LEAST_SINGULAR:
        return None
    shares = _shares(rates, now / now.sum())
    drawn = [_resampled(now, reference, rng) for _ in range(_RESAMPLES)]
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(np.array(drawn), [tail, 1.0 - tail], axis=0)
    return tuple(Interval(*map(float, ends)) for ends in zip(shares, low, high, strict=True))


def _resampled(
    now: NDArray[np.int64], reference: NDArray[np.int64], rng: np.random.Generator
) -> Floats:
    """The estimate with both sets drawn anew, each class of the reference on its own."""
    sizes = reference.sum(axis=0)
    columns = [rng.multinomial(n, reference[:, j] / n) / n for j, n in enumerate(sizes)]
    return _shares(
        np.stack(columns, axis=1), rng.multinomial(now.sum(), now / now.sum()).astype(np.float64)
    )


def _shares(rates: Floats, predicted: Floats) -> Floats:
    solved = np.maximum(np.linalg.lstsq(rates, predicted, rcond=None)[0], 0.0)
    total = solved.sum()
    found: Floats = solved / total if total > 0 else np.full(len(solved), 1.0 / len(solved))
    return found
