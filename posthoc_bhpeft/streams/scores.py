"""How well a stream is learnt: figures of every round after every round, and their summaries.

Write `a[i, j]` for the accuracy on the test rows of round j after round i was learnt, rounds
counted in the order they were learnt. The summaries are those of Lopez-Paz and Ranzato (2017,
https://arxiv.org/abs/1706.08840).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

import torch
from torch import Tensor

from posthoc_bhpeft.audit import (
    accuracy,
    expected_calibration_error,
    negative_log_likelihood,
)
from posthoc_bhpeft.errors import DataError
from posthoc_bhpeft.streams.methods.method import StreamRun
from posthoc_bhpeft.streams.rounds import LabelSpace, Round


@dataclass(frozen=True)
class RoundScore:
    """Figures of one round's test rows at one time.

    Attributes:
        trained: the round learnt last.
        tested: the round the rows are of.
        n: number of rows.
        outputs: classes the model chose among; guessing is right once in so many times.
        accuracy: share of right predictions.
        nll: mean negative log likelihood in nats.
        ece: expected calibration error, 15 bins of equal width.
    """

    trained: str
    tested: str
    n: int
    outputs: int
    accuracy: float
    nll: float
    ece: float


def score(
    run: StreamRun, labels: LabelSpace, trained: str, rounds: Sequence[Round]
) -> tuple[RoundScore, ...]:
    """Figures of every round whose labels the model knows; rounds without test rows are left out.

    Give rounds that were not learnt yet along, and `StreamScores.forward_transfer` can tell what
    the model knew of them beforehand: with shared labels they are scored as soon as all their
    labels are known, with a head a round never.

    Args:
        run: has learnt `trained` last.
        labels: of the run's learner, at this time.
        trained: name of the round learnt last.
        rounds: to be scored.
    """
    found = []
    for round_ in rounds:
        test = round_.test
        if test is None or len(test) == 0 or not labels.knows(round_.name, test):
            continue
        targets = torch.tensor(labels.within(round_.name, test))
        p = _at_least_two(run.probabilities(round_.name, test))
        found.append(
            RoundScore(
                trained=trained,
                tested=round_.name,
                n=len(test),
                outputs=len(labels.columns(round_.name)),
                accuracy=accuracy(p, targets),
                nll=negative_log_likelihood(p, targets),
                ece=expected_calibration_error(p, targets),
            )
        )
    return tuple(found)


@dataclass(frozen=True)
class StreamScores:
    """All figures of one stream.

    Attributes:
        rows: in the order they were taken.
    """

    rows: tuple[RoundScore, ...]

    @property
    def rounds(self) -> tuple[str, ...]:
        """Rounds learnt, in their order."""
        return tuple(dict.fromkeys(row.trained for row in self.rows))

    def at(self, trained: str, tested: str) -> RoundScore:
        """The figures of one round after another.

        Raises:
            DataError: it was not scored then.
        """
        for row in self.rows:
            if (row.trained, row.tested) == (trained, tested):
                return row
        raise DataError(
            f"The round {tested!r} was not scored after {trained!r}. Rounds learnt: "
            f"{', '.join(map(repr, self.rounds)) or 'none'}; each needs test rows."
        )

    def average_accuracy(self, after: str) -> float:
        """Mean of `a[i, j]` over the rounds j <= i learnt so far; every round counts alike."""
        return self._mean(after, lambda row: row.accuracy)

    def average_nll(self, after: str) -> float:
        """Mean NLL over the rounds learnt so far, in nats."""
        return self._mean(after, lambda row: row.nll)

    def average_ece(self, after: str) -> float:
        """Mean expected calibration error over the rounds learnt so far."""
        return self._mean(after, lambda row: row.ece)

    def backward_transfer(self, after: str) -> float:
        """Mean of `a[i, j] - a[j, j]` over the earlier rounds j < i: below 0 is forgetting.

        0 for the first round, before which there is nothing to forget. Rounds that could not be
        scored when they were learnt are left out.
        """
        own = {row.tested: row.accuracy for row in self.rows if row.trained == row.tested}
        earlier = [row for row in self._learnt(after) if row.tested != after]
        changes = [row.accuracy - own[row.tested] for row in earlier if row.tested in own]
        return fmean(changes) if changes else 0.0

    def forward_transfer(self, after: str) -> float | None:
        """Mean of `a[j - 1, j] - 1 / C_j` over the rounds 1 < j <= i that were scored so early.

        What the model knew of a round before learning it, above guessing among its `C_j` outputs.
        None where no round was scored beforehand.
        """
        order = self.rounds[: self._place(after) + 1]
        gains = [
            row.accuracy - 1.0 / row.outputs
            for before, then in pairwise(order)
            for row in self.rows
            if (row.trained, row.tested) == (before, then)
        ]
        return fmean(gains) if gains else None

    def _mean(self, after: str, figure: Callable[[RoundScore], float]) -> float:
        rows = self._learnt(after)
        if not rows:
            raise DataError(f"No round was scored after {after!r}; rounds need test rows.")
        return fmean(map(figure, rows))

    def _learnt(self, after: str) -> list[RoundScore]:
        """Figures after a round, of the rounds learnt until then."""
        learnt = self.rounds[: self._place(after) + 1]
        return [row for row in self.rows if row.trained == after and row.tested in learnt]

    def _place(self, after: str) -> int:
        if after not in self.rounds:
            raise DataError(
                f"Nothing was scored after a round {after!r}. Rounds learnt: "
                f"{', '.join(map(repr, self.rounds)) or 'none'}."
            )
        return self.rounds.index(after)


def _at_least_two(probabilities: Tensor) -> Tensor:
    """A second class of probability 0 beside an only one, which the metrics do not take."""
    if probabilities.shape[1] > 1:
        return probabilities
    return torch.cat([probabilities, torch.zeros_like(probabilities)], 1)
