"""Rows worth reading: predictions that were sure and far off, and those it is least sure of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from posthoc_bhpeft.audit.metrics.gaussian import reach
from posthoc_bhpeft.audit.regression.predictions import RealPredictions
from posthoc_bhpeft.audit.report.examples import FOLDED, MOST_LETTERS, SHOWN

_LEVEL = 0.90


@dataclass(frozen=True)
class RealExample:
    """One row.

    Attributes:
        row: Its index in the source, from 0; its place among the rows where that is not known.
        start: Its text, or the start of it; empty where there is none.
        rest: What follows, folded.
        mean: What was predicted.
        low: End of its central 90 % interval.
        high: The other end.
        target: What came true, where it is known.
        epistemic: Share of the variance that is epistemic.
    """

    row: int
    start: str
    rest: str
    mean: float
    low: float
    high: float
    target: float | None
    epistemic: float

    @property
    def inside(self) -> bool:
        """Whether the target is in the interval."""
        return self.target is not None and self.low <= self.target <= self.high


@dataclass(frozen=True)
class RealGallery:
    """Examples of one kind; see `Gallery`."""

    id: str
    title: str
    lead: str
    shown: tuple[RealExample, ...]
    folded: tuple[RealExample, ...]


def real_galleries(predictions: RealPredictions) -> tuple[RealGallery, ...]:
    """Rows furthest outside what was predicted, and those with the largest deviation."""
    return tuple(_galleries(predictions))


def _galleries(predictions: RealPredictions) -> Iterator[RealGallery]:
    if predictions.targets is not None:
        order = np.argsort(-np.abs(predictions.gaussians.z), kind="stable")
        yield _gallery(
            predictions, order, "surprises", "Furthest outside what it predicted",
            "It was sure and far off: a target that is wrong, or something it has not learnt.",
        )  # fmt: skip
    if predictions.ranks:
        order = np.argsort(-predictions.deviation, kind="stable")
        yield _gallery(
            predictions, order, "least-sure", "Least sure",
            "These go to a person first. If a person cannot tell either, the question is at fault.",
        )  # fmt: skip


def _gallery(
    predictions: RealPredictions, order: NDArray[np.int64], key: str, title: str, lead: str
) -> RealGallery:
    made = tuple(example(predictions, int(row)) for row in order[: SHOWN + FOLDED])
    return RealGallery(key, title, lead, made[:SHOWN], made[SHOWN:])


def example(predictions: RealPredictions, row: int) -> RealExample:
    """One row of the predictions, counted from 0."""
    start, rest = cut("" if predictions.texts is None else predictions.texts[row])
    mean, half = float(predictions.mean[row]), reach(_LEVEL) * float(predictions.deviation[row])
    return RealExample(
        row=row if predictions.indices is None else predictions.indices[row],
        start=start,
        rest=rest,
        mean=mean,
        low=mean - half,
        high=mean + half,
        target=None if predictions.targets is None else float(predictions.targets[row]),
        epistemic=float(predictions.epistemic[row] / predictions.variance[row]),
    )


def cut(text: str) -> tuple[str, str]:
    """A text cut at a space, if it is much longer than what is shown."""
    if len(text) <= MOST_LETTERS + 40:
        return text, ""
    place = text.rfind(" ", MOST_LETTERS // 2, MOST_LETTERS)
    place = MOST_LETTERS if place < 0 else place
    return text[:place], text[place:]
