"""Intervals by drawing rows again, also for figures that chance can only make worse."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from posthoc_bhpeft.audit.arrays import Array, Floats, check_pair
from posthoc_bhpeft.errors import ConfigError, DataError

# Weights held at once: 4 million float64 are 32 MB.
_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Interval:
    """A figure with its bootstrap interval; of two models, the difference, first less second.

    Attributes:
        estimate: on all rows; NaN where the figure has no meaning, and then so are the ends.
        low: lower end.
        high: upper end.
    """

    estimate: float
    low: float
    high: float

    @property
    def known(self) -> bool:
        """Whether there is a figure at all."""
        return bool(np.isfinite(self.estimate))

    def excludes(self, value: float) -> bool:
        """Whether a value is outside: of a difference, `excludes(0)` is clear evidence."""
        return bool(value < self.low or value > self.high)


@dataclass(frozen=True, eq=False)
class Draws:
    """What a figure did over the resamples.

    Attributes:
        estimate: On all rows.
        error: Its value on each resample, less the estimate, ``(R,)``.
        excess: How far noise may have lifted the estimate, ``(R,)``: ``error`` itself but for
            figures that noise lifts.
        biased: Whether noise moves the figure to one side, so that quantiles of the resamples are
            off and the interval has to be reflected.
    """

    estimate: float
    error: Floats
    excess: Floats
    biased: bool = False

    def interval(self, level: float, least: float = -np.inf, most: float = np.inf) -> Interval:
        """The interval of the figure, inside its range; it always holds the estimate.

        Percentiles of the resamples for a figure without bias. For the others the lower end takes
        off what noise may have added, the upper end is the basic bootstrap's.
        """
        tail = (1.0 - check_level(level)) / 2.0
        if self.biased:
            low, high = quantile(-self.excess, tail), quantile(-self.error, 1.0 - tail)
        else:
            low, high = quantile(self.error, tail), quantile(self.error, 1.0 - tail)
        return ends(self.estimate, low, high, least, most)

    def less(self, other: Draws, level: float) -> Interval:
        """The interval of this figure less another's on the same resamples, never clipped."""
        tail = (1.0 - check_level(level)) / 2.0
        if self.biased or other.biased:
            low = quantile(other.error - self.excess, tail)
            high = quantile(other.excess - self.error, 1.0 - tail)
        else:
            low, high = (quantile(self.error - other.error, q) for q in (tail, 1.0 - tail))
        return ends(self.estimate - other.estimate, low, high)


def ends(
    estimate: float, low: float, high: float, least: float = -np.inf, most: float = np.inf
) -> Interval:
    """An interval from moves off the estimate, clipped to a range; all NaN where one is."""
    if not np.isfinite([estimate, low, high]).all():
        return Interval(float("nan"), float("nan"), float("nan"))
    return Interval(
        estimate,
        float(max(estimate + min(low, 0.0), least)),
        float(min(estimate + max(high, 0.0), most)),
    )


def quantile(values: Floats, share: float) -> float:
    """A quantile of the values that are not NaN; NaN where none is."""
    known = values[np.isfinite(values)]
    return float(np.quantile(known, share)) if len(known) else float("nan")


def draw_weights(
    rows: int, resamples: int, generator: torch.Generator | None = None
) -> Iterator[Floats]:
    """How often each row is drawn in each resample, in pieces ``(R', N)`` that fit in memory.

    Args:
        rows: Number of rows ``N``; every line sums to it.
        resamples: Number of resamples, the sum of all ``R'``.
        generator: Source of chance on the CPU; None is one with seed 0.

    Raises:
        ConfigError: If `resamples` is below 1.
    """
    if resamples < 1:
        raise ConfigError(f"resamples is {resamples}, it must be 1 or more")
    source = generator or torch.Generator().manual_seed(0)
    step = min(max(_AT_ONCE // rows, 64), resamples)
    for start in range(0, resamples, step):
        many = min(step, resamples - start)
        drawn = torch.randint(rows, (many, rows), generator=source).numpy()
        flat = (drawn + np.arange(many)[:, None] * rows).ravel()
        counts = np.bincount(flat, minlength=many * rows).reshape(many, rows)
        yield counts.astype(np.float64)


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

    Both models see the same rows in each resample, so what is hard for both cancels. For any metric
    of your own; `compare` measures the whole catalogue at once, and faster.

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
    tail = (1.0 - check_level(level)) / 2.0
    source = generator or torch.Generator().manual_seed(0)
    differences = np.empty(resamples)
    for i in range(resamples):
        rows = torch.randint(len(y), (len(y),), generator=source).numpy()
        differences[i] = metric(two[rows], y[rows]) - metric(one[rows], y[rows])
    low, high = np.quantile(differences, [tail, 1.0 - tail])
    return Interval(metric(two, y) - metric(one, y), float(low), float(high))


def check_level(level: float) -> float:
    """The level, where it is one.

    Raises:
        ConfigError: If it is not inside (0, 1).
    """
    if not 0.0 < level < 1.0:
        raise ConfigError(f"level is {level}, it must be inside (0, 1), such as 0.95")
    return level
