"""Warm start: training simply goes on."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from posthoc_bhpeft.data import TextData
from posthoc_bhpeft.streams.learner import Learner
from posthoc_bhpeft.streams.methods.method import StreamRun
from posthoc_bhpeft.streams.rounds import Round


@dataclass(frozen=True)
class WarmStart:
    """Train on the new rows from the previous weights; nothing guards what was learnt before."""

    def start(self, learner: Learner) -> StreamRun:
        """A run with this learner."""
        return _WarmStartRun(learner)


@dataclass
class _WarmStartRun:
    learner: Learner

    def learn(self, round_: Round, index: int) -> None:
        """Train on the rows of the round."""
        self.learner.meet(round_)
        self.learner.fit(
            [(round_.name, round_.train)],
            seed=self.learner.seed_of(index),
            validation=round_.validation,
        )

    def probabilities(self, round_name: str, data: TextData) -> Tensor:
        """(N, C_round), float64."""
        return self.learner.logits(round_name, data).double().softmax(1)

    @property
    def state_bytes(self) -> int:
        """Nothing."""
        return 0
