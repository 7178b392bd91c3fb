"""Every metric of the catalogue at once, with intervals, on the same resamples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

import numpy as np
import torch

from posthoc_bhpeft.audit.arrays import Array, Floats
from posthoc_bhpeft.audit.metrics.bootstrap import Draws, Interval, check_level, draw_weights
from posthoc_bhpeft.audit.metrics.catalogue import DETECTION, GAUSSIAN, METRICS, Metric
from posthoc_bhpeft.audit.metrics.detection import Scored
from posthoc_bhpeft.audit.metrics.gaussian import DrawnGaussians, Gaussians
from posthoc_bhpeft.audit.metrics.rows import Resampled, Rows
from posthoc_bhpeft.audit.predictions import CONFIDENCE, Predictions
from posthoc_bhpeft.errors import DataError

Drawn = TypeVar("Drawn")


def measure(
    predictions: Predictions,
    *,
    score: str = CONFIDENCE,
    resamples: int = 1000,
    level: float = 0.95,
    generator: torch.Generator | None = None,
) -> Mapping[str, Interval]:
    """Every metric of `METRICS` with its interval, by name.

    Rows are drawn again with replacement; all metrics see the same resamples. Calibration errors
    and F1 are moved to one side by noise, and percentiles of resamples would be moved twice: their
    intervals are reflected, and the lower end of a calibration error takes off what noise may have
    added (`docs/metrics.md` has the measured coverage). Errors removed have an exact
    binomial interval where a handful of rows decides them. An interval always holds its estimate.

    Args:
        predictions: With labels.
        score: What rows are ranked by for AURC, AUGRC, accuracy at a coverage and errors removed.
        resamples: Number of resamples.
        level: Coverage of the intervals.
        generator: Source of chance on the CPU; `None` is one with seed 0.

    Returns:
        A figure that has no meaning on these rows, such as errors removed where there is none, is
        NaN with NaN ends (`Interval.known`).

    Raises:
        ConfigError: If `resamples` or `level` is out of range.
        DataError: If there are no labels, or no score of that name.
        NonFiniteError: If a probability or a score is NaN.
    """
    check_level(level)
    rows = Rows.of(predictions, score)
    pieces = (Resampled(rows, w) for w in draw_weights(len(rows), resamples, generator))
    found = drawn_figures(METRICS, rows.whole, pieces)
    return {m.name: m.interval(found[m.name], rows.whole, level) for m in METRICS}


def compare(
    subject: Predictions,
    rival: Predictions,
    *,
    score: str = CONFIDENCE,
    rival_score: str = CONFIDENCE,
    resamples: int = 1000,
    level: float = 0.95,
    generator: torch.Generator | None = None,
) -> Mapping[str, Interval]:
    """The subject's figure less the rival's for every metric, paired, by name.

    Both see the same resamples, so what is hard for both cancels. An interval without zero is
    evidence of a difference in that one metric. There are 17 metrics: name the one that decides
    before looking, for some interval out of so many may miss zero by chance.

    Args:
        subject: With labels.
        rival: About the same rows, in the same order.
        score: What the subject's rows are ranked by.
        rival_score: What the rival's rows are ranked by.
        resamples: Number of resamples.
        level: Coverage of each interval.
        generator: Source of chance on the CPU; `None` is one with seed 0.

    Raises:
        ConfigError: If `resamples` or `level` is out of range.
        DataError: If the two are about different rows, or labels or a score are missing.
        NonFiniteError: If a probability or a score is NaN.
    """
    check_level(level)
    one, two = Rows.of(subject, score), Rows.of(rival, rival_score)
    _check_same_rows(one, two)
    first, second = _Pieces(), _Pieces()
    for weights in draw_weights(len(one), resamples, generator):
        first.add(METRICS, Resampled(one, weights))
        second.add(METRICS, Resampled(two, weights))
    mine, theirs = first.draws(METRICS, one.whole), second.draws(METRICS, two.whole)
    return {m.name: mine[m.name].less(theirs[m.name], level) for m in METRICS}


def detect(
    inside: Predictions,
    outside: Predictions,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    generator: torch.Generator | None = None,
) -> Mapping[str, Mapping[str, Interval]]:
    """How well each score that both have tells rows outside from rows inside, by score and metric.

    Rows inside and outside are drawn again apart, so their numbers stay as they are. Labels are
    not needed.

    Args:
        inside: Rows like those trained on.
        outside: Rows from elsewhere.
        resamples: Number of resamples.
        level: Coverage of the intervals.
        generator: Source of chance on the CPU; `None` is one with seed 0.

    Raises:
        ConfigError: If `resamples` or `level` is out of range.
        DataError: If one side has no row.
        NonFiniteError: If a score is NaN.
    """
    check_level(level)
    source = generator or torch.Generator().manual_seed(0)
    shared = [name for name in inside.score_names if name in outside.score_names]
    wholes = {name: Scored.whole(inside.score(name), outside.score(name)) for name in shared}
    pieces = {name: _Pieces() for name in shared}
    for ins, outs in _both(len(inside), len(outside), resamples, source):
        for name, whole in wholes.items():
            pieces[name].add(DETECTION, Scored(whole.inside, whole.outside, ins, outs))
    found = {name: pieces[name].draws(DETECTION, whole) for name, whole in wholes.items()}
    return {
        name: {m.name: draws[m.name].interval(level, m.least, m.most) for m in DETECTION}
        for name, draws in found.items()
    }


def measure_gaussian(
    mean: Array,
    variance: Array,
    targets: Array,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    generator: torch.Generator | None = None,
) -> Mapping[str, Interval]:
    """Every metric of `GAUSSIAN`, for a regression, with its bootstrap interval, by name.

    Args:
        mean: Predicted means, ``(N,)``.
        variance: Predicted variances of the target, noise included, ``(N,)``.
        targets: What came true, ``(N,)``.
        resamples: Number of resamples.
        level: Coverage of the bootstrap intervals (not of the predictive ones).
        generator: Source of chance on the CPU; `None` is one with seed 0.

    Raises:
        ConfigError: If `resamples` or `level` is out of range.
        DataError: If shapes differ or a variance is not above zero.
        NonFiniteError: If a value is NaN or infinite.
    """
    check_level(level)
    rows = Gaussians.checked(mean, variance, targets)
    pieces = (DrawnGaussians(rows, w) for w in draw_weights(len(rows), resamples, generator))
    found = drawn_figures(GAUSSIAN, DrawnGaussians.whole(rows), pieces)
    return {m.name: found[m.name].interval(level, m.least, m.most) for m in GAUSSIAN}


def drawn_figures(
    metrics: tuple[Metric[Drawn], ...], whole: Drawn, pieces: Iterable[Drawn]
) -> dict[str, Draws]:
    """What each metric did over resamples that come in pieces, by name."""
    found = _Pieces()
    for piece in pieces:
        found.add(metrics, piece)
    return found.draws(metrics, whole)


class _Pieces:
    """Values of resamples as they come; a piece and what it caches is let go before the next."""

    def __init__(self) -> None:
        self.values: dict[str, list[Floats]] = {}
        self.excess: dict[str, list[Floats]] = {}

    def add(self, metrics: tuple[Metric[Drawn], ...], piece: Drawn) -> None:
        for metric in metrics:
            self.values.setdefault(metric.name, []).append(metric.values(piece))
            if metric.excess is not None:
                self.excess.setdefault(metric.name, []).append(metric.excess(piece))

    def draws(self, metrics: tuple[Metric[Drawn], ...], whole: Drawn) -> dict[str, Draws]:
        return {metric.name: self._of(metric, whole) for metric in metrics}

    def _of(self, metric: Metric[Drawn], whole: Drawn) -> Draws:
        estimate = float(metric.values(whole)[0])
        error = np.concatenate(self.values[metric.name]) - estimate
        lifted = self.excess.get(metric.name)
        excess = error if lifted is None else np.concatenate(lifted)
        return Draws(estimate, error, excess, metric.biased)


def _both(
    inside: int, outside: int, resamples: int, source: torch.Generator
) -> Iterator[tuple[Floats, Floats]]:
    """Weights of both sides in pieces of equally many resamples."""
    for weights in draw_weights(max(inside, outside), resamples, source):
        parts = list(draw_weights(min(inside, outside), len(weights), source))
        other = np.concatenate(parts)
        yield (weights, other) if inside >= outside else (other, weights)


def _check_same_rows(one: Rows, two: Rows) -> None:
    if len(one) != len(two):
        raise DataError(
            f"The subject has {len(one)} rows and the rival {len(two)}; a paired comparison needs "
            "predictions for the same rows, in the same order."
        )
    differ = int((one.labels != two.labels).sum())
    if differ:
        raise DataError(
            f"{differ} of {len(one)} labels of the subject and the rival differ, so they are not "
            "about the same rows in the same order. Sort both by the same column first."
        )
