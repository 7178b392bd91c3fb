"""Regression: how good, and how honest, a Gaussian predictive is.

Every function takes ``mean``, ``variance`` and ``targets`` of shape ``(N,)``; the variance is that
of the target, noise included.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist

import numpy as np
import torch

from posthoc_bhpeft.audit.arrays import Array, Floats, as_floats
from posthoc_bhpeft.audit.metrics.bootstrap import check_level
from posthoc_bhpeft.audit.metrics.calibration import directional
from posthoc_bhpeft.errors import ConfigError, DataError, NonFiniteError


@dataclass(frozen=True, eq=False)
class Gaussians:
    """A Gaussian for each row, beside what came true.

    Attributes:
        mean: ``(N,)``.
        deviation: Standard deviation, ``(N,)``.
        targets: ``(N,)``.
    """

    mean: Floats
    deviation: Floats
    targets: Floats

    def __len__(self) -> int:
        return len(self.mean)

    @classmethod
    def checked(cls, mean: Array, variance: Array, targets: Array) -> Gaussians:
        """From arrays.

        Raises:
            DataError: If shapes differ, there is no row, or a variance is not above zero.
            NonFiniteError: If a value is NaN or infinite.
        """
        m, v, y = (as_floats(values) for values in (mean, variance, targets))
        if m.ndim != 1 or not (m.shape == v.shape == y.shape) or not len(m):
            raise DataError(
                f"mean, variance and targets have shapes {m.shape}, {v.shape} and {y.shape}; they "
                "must be (N,) with at least one row. Measure several outputs one at a time"
            )
        if not np.isfinite(np.stack([m, v, y])).all():
            raise NonFiniteError("mean, variance or targets hold NaN or infinity")
        if (v <= 0).any():
            raise DataError(
                f"{int((v <= 0).sum())} of {len(v)} variances are not above 0; add the variance of "
                "the noise, or pass the variance and not its logarithm"
            )
        return cls(m, np.sqrt(v), y)

    @cached_property
    def z(self) -> Floats:
        """``(target - mean) / deviation``, ``(N,)``."""
        found: Floats = (self.targets - self.mean) / self.deviation
        return found

    @cached_property
    def pit(self) -> Floats:
        """Probability integral transform ``Phi(z)``, ``(N,)``: uniform if all is well."""
        found: Floats = torch.special.ndtr(torch.from_numpy(self.z)).numpy()
        return found

    @cached_property
    def nll(self) -> Floats:
        """Negative log density in nats, ``(N,)``."""
        found: Floats = np.log(self.deviation) + 0.5 * np.log(2 * np.pi) + 0.5 * self.z**2
        return found

    @cached_property
    def crps(self) -> Floats:
        """Continuous ranked probability score, ``(N,)``, in the unit of the targets."""
        density = np.exp(-0.5 * self.z**2) / np.sqrt(2 * np.pi)
        found: Floats = self.deviation * (
            self.z * (2.0 * self.pit - 1.0) + 2.0 * density - 1.0 / np.sqrt(np.pi)
        )
        return found

    @cached_property
    def squared_error(self) -> Floats:
        """``(target - mean)^2``, ``(N,)``."""
        found: Floats = (self.targets - self.mean) ** 2
        return found

    def inside(self, level: float) -> Floats:
        """One where the target is in the central interval of this level, ``(N,)``."""
        found: Floats = (np.abs(self.z) <= reach(level)).astype(np.float64)
        return found


@dataclass(frozen=True, eq=False)
class DrawnGaussians:
    """Rows of a regression drawn again, ``R`` times.

    Attributes:
        rows: The rows.
        weights: How often each was drawn, ``(R, N)``.
    """

    rows: Gaussians
    weights: Floats

    @classmethod
    def whole(cls, rows: Gaussians) -> DrawnGaussians:
        """Every row once."""
        return cls(rows, np.ones((1, len(rows))))

    def mean(self, values: Floats) -> Floats:
        """Mean over the rows of each resample, ``(R,)``."""
        found: Floats = self.weights @ values / len(self.rows)
        return found

    def reviewed_error(self, share: float) -> Floats:
        """Summed squared error of the share of rows with the largest deviation, ``(R,)``.

        Rows of equal deviation are taken in equal parts, so that a deviation that is the same for
        every row removes as much as chance would.
        """
        order = np.argsort(-self.rows.deviation, kind="stable")
        first = np.flatnonzero(np.diff(self.rows.deviation[order], prepend=np.inf) != 0.0)
        weights = self.weights[:, order]
        rows = np.add.reduceat(weights, first, axis=1)
        error = np.add.reduceat(weights * self.rows.squared_error[order], first, axis=1)
        before = np.cumsum(rows, axis=1) - rows
        taken = np.clip(share * len(self.rows) - before, 0.0, rows)
        found: Floats = (error * taken / np.maximum(rows, 1.0)).sum(axis=1)
        return found

    @cached_property
    def pit_steps(self) -> tuple[Floats, Floats]:
        """Where the PIT's distribution steps, ``(N + 2,)``, and its height between."""
        order = np.argsort(self.rows.pit)
        heights = np.cumsum(self.weights[:, order], axis=1) / len(self.rows)
        edges = np.concatenate([[0.0], self.rows.pit[order], [1.0]])
        return edges, np.concatenate([np.zeros((len(heights), 1)), heights], axis=1)


def gaussian_nll(mean: Array, variance: Array, targets: Array) -> float:
    """Mean of ``-log N(y; mean, variance)`` in nats."""
    return float(Gaussians.checked(mean, variance, targets).nll.mean())


def gaussian_crps(mean: Array, variance: Array, targets: Array) -> float:
    """Mean of ``integral (F(t) - 1[t >= y])^2 dt``, in the unit of the targets.

    In closed form ``sigma (z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt(pi))`` (Gneiting and Raftery,
    2007, https://doi.org/10.1198/016214506000001437). A certain predictive has its absolute error.
    """
    return float(Gaussians.checked(mean, variance, targets).crps.mean())


def root_mean_squared_error(mean: Array, variance: Array, targets: Array) -> float:
    """Root of the mean of ``(y - mean)^2``, in the unit of the targets, whatever the variance."""
    rows = Gaussians.checked(mean, variance, targets)
    return float(rmse_of(DrawnGaussians.whole(rows))[0])


def mean_absolute_error(mean: Array, variance: Array, targets: Array) -> float:
    """Mean of ``|y - mean|``, in the unit of the targets, whatever the variance."""
    rows = Gaussians.checked(mean, variance, targets)
    return float(mae_of(DrawnGaussians.whole(rows))[0])


def mean_error(mean: Array, variance: Array, targets: Array) -> float:
    """Mean of ``mean - y``, in the unit of the targets: above zero where predictions are high."""
    rows = Gaussians.checked(mean, variance, targets)
    return float(bias_of(DrawnGaussians.whole(rows))[0])


def explained_variance(mean: Array, variance: Array, targets: Array) -> float:
    """``R2 = 1 - sum (y - mean)^2 / sum (y - average of y)^2``; NaN if all targets are equal.

    0 is what the average target would reach, and it may be far below.
    """
    rows = Gaussians.checked(mean, variance, targets)
    return float(r2_of(DrawnGaussians.whole(rows))[0])


def rmse_after_review(mean: Array, variance: Array, targets: Array, share: float = 0.10) -> float:
    """`root_mean_squared_error` of the rows left when a share, the least certain, is taken out."""
    rows = Gaussians.checked(mean, variance, targets)
    return float(rmse_kept_of(DrawnGaussians.whole(rows), share)[0])


def squared_error_removed(
    mean: Array, variance: Array, targets: Array, share: float = 0.10
) -> float:
    """Part of all squared error that the share of rows with the largest deviation holds."""
    rows = Gaussians.checked(mean, variance, targets)
    return float(removed_of(DrawnGaussians.whole(rows), share)[0])


def interval_coverage(mean: Array, variance: Array, targets: Array, level: float = 0.90) -> float:
    """Share of targets inside the central interval of this level; best where it is the level."""
    return float(Gaussians.checked(mean, variance, targets).inside(level).mean())


def interval_width(mean: Array, variance: Array, targets: Array, level: float = 0.90) -> float:
    """Mean width of the central interval of this level, in the unit of the targets."""
    return float(2.0 * reach(level) * Gaussians.checked(mean, variance, targets).deviation.mean())


def pit_error(mean: Array, variance: Array, targets: Array) -> float:
    """Area between the distribution of ``Phi(z)`` and the uniform one, from 0 to 0.5.

    ``integral_0^1 |share of rows with PIT <= u, less u| du``: the mean gap between the levels that
    quantiles promise and what they hold, over all levels, without bins. It is the Wasserstein
    distance of the PIT to the uniform distribution (for the PIT: Gneiting, Balabdaoui and Raftery,
    2007, https://doi.org/10.1111/j.1467-9868.2007.00587.x).
    """
    rows = Gaussians.checked(mean, variance, targets)
    return float(pit_error_of(DrawnGaussians.whole(rows))[0])


def rmse_of(drawn: DrawnGaussians) -> Floats:
    """`root_mean_squared_error` of each resample, ``(R,)``."""
    return np.sqrt(drawn.mean(drawn.rows.squared_error))


def mae_of(drawn: DrawnGaussians) -> Floats:
    """`mean_absolute_error` of each resample, ``(R,)``."""
    return drawn.mean(np.abs(drawn.rows.targets - drawn.rows.mean))


def bias_of(drawn: DrawnGaussians) -> Floats:
    """`mean_error` of each resample, ``(R,)``."""
    return drawn.mean(drawn.rows.mean - drawn.rows.targets)


def r2_of(drawn: DrawnGaussians) -> Floats:
    """`explained_variance` of each resample, ``(R,)``; NaN where all its targets are equal."""
    # About their average, so that large targets lose no digits.
    targets = drawn.rows.targets - drawn.rows.targets.mean()
    spread = drawn.mean(targets**2) - drawn.mean(targets) ** 2
    error = drawn.mean(drawn.rows.squared_error)
    found: Floats = 1.0 - error / np.where(spread > 1e-12 * targets.var(), spread, np.nan)
    return found


def rmse_kept_of(drawn: DrawnGaussians, share: float = 0.10) -> Floats:
    """`rmse_after_review` of each resample, ``(R,)``."""
    left = drawn.mean(drawn.rows.squared_error) * len(drawn.rows) - drawn.reviewed_error(share)
    found: Floats = np.sqrt(np.maximum(left, 0.0) / ((1.0 - _checked(share)) * len(drawn.rows)))
    return found


def removed_of(drawn: DrawnGaussians, share: float = 0.10) -> Floats:
    """`squared_error_removed` of each resample, ``(R,)``; NaN where there is no error at all."""
    whole = drawn.mean(drawn.rows.squared_error) * len(drawn.rows)
    found: Floats = drawn.reviewed_error(_checked(share)) / np.where(whole > 0.0, whole, np.nan)
    return found


def coverage_of(drawn: DrawnGaussians, level: float = 0.90) -> Floats:
    """`interval_coverage` of each resample, ``(R,)``."""
    return drawn.mean(drawn.rows.inside(level))


def width_of(drawn: DrawnGaussians, level: float = 0.90) -> Floats:
    """`interval_width` of each resample, ``(R,)``."""
    return drawn.mean(2.0 * reach(level) * drawn.rows.deviation)


def pit_error_of(drawn: DrawnGaussians) -> Floats:
    """`pit_error` of each resample, ``(R,)``."""
    edges, share = drawn.pit_steps
    # Between two steps the distribution is flat: integrate |share - u| in closed form.
    above, below = edges[1:] - share, edges[:-1] - share
    found: Floats = (above * np.abs(above) - below * np.abs(below)).sum(axis=1) / 2.0
    return found


def pit_excess(drawn: DrawnGaussians) -> Floats:
    """How much of `pit_error_of` may be noise, ``(R,)``."""
    edges, share = drawn.pit_steps
    whole = DrawnGaussians.whole(drawn.rows).pit_steps[1][0]
    at = whole - (edges[1:] + edges[:-1]) / 2.0
    n = len(drawn.rows)
    error = np.sqrt(np.maximum(whole * (1.0 - whole), 1.0 / n) / n)
    found: Floats = directional(share - whole, at, error) @ np.diff(edges)
    return found


def _checked(share: float) -> float:
    """A share to take out.

    Raises:
        ConfigError: If it is not inside (0, 1).
    """
    if not 0.0 < share < 1.0:
        raise ConfigError(f"share is {share}; it must lie between 0 and 1, such as 0.1 for 10 %.")
    return share


def reach(level: float) -> float:
    """Half the width of a central interval, in standard deviations."""
    return NormalDist().inv_cdf(0.5 + check_level(level) / 2.0)
