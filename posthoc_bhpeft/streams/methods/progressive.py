"""Progressive networks for PEFT: every round has weights of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from posthoc_bhpeft.data import TextData
from posthoc_bhpeft.streams.learner import Learner
from posthoc_bhpeft.streams.methods.method import StreamRun
from posthoc_bhpeft.streams.rounds import Round


@dataclass(frozen=True)
class Progressive:
    """One new set of adapter, LoRA, prefix and head a round, the older ones frozen.

    The idea is that of progressive networks (Rusu et al., 2016, https://arxiv.org/abs/1606.04671):
    nothing learnt is ever changed, so nothing is forgotten, and the size grows with the rounds.
    The round of a test row chooses the weights, also where all rounds share their labels; a row of
    a round that had no rows to learn from gets the newest ones.

    Differences from the paper: its columns are whole networks, and a new one reads the hidden
    layers of the older ones through lateral connections. Here the frozen base is common to all
    rounds and there are no lateral connections; what a round can take over from earlier ones is
    their weights as its starting point. So with `from_previous` the newest round is a warm start,
    and the difference is seen on the older rounds only.

    With shared labels a round's weights know the names met up to that round. Names that came
    later have probability 0.

    Attributes:
        from_previous: start from the weights of the previous round; otherwise from scratch.
    """

    from_previous: bool = True

    def start(self, learner: Learner) -> StreamRun:
        """A run with this learner."""
        return _ProgressiveRun(self, learner)


@dataclass(frozen=True)
class _Column:
    """The trained weights of one round, and how many outputs they had."""

    weights: dict[str, Tensor]
    n_outputs: int

    def grown_to(self, present: dict[str, Tensor]) -> dict[str, Tensor]:
        """The same weights in today's shapes; outputs that came later are never read."""
        return {
            name: torch.cat([old, present[name][len(old) :].to(old)])
            for name, old in self.weights.items()
        }


@dataclass
class _ProgressiveRun:
    method: Progressive
    learner: Learner
    columns: dict[str, _Column] = field(default_factory=dict)

    def learn(self, round_: Round, index: int) -> None:
        """Train new weights and put a copy of them beside the others."""
        self.learner.meet(round_)
        if len(round_.train) == 0:
            return
        if not self.method.from_previous:
            self.learner.reset()
        self.learner.fit(
            [(round_.name, round_.train)],
            seed=self.learner.seed_of(index),
            validation=round_.validation,
        )
        # A round learnt again becomes the newest one.
        self.columns.pop(round_.name, None)
        self.columns[round_.name] = _Column(self.learner.snapshot(), len(self.learner.labels.names))

    def probabilities(self, round_name: str, data: TextData) -> Tensor:
        """(N, C_round), float64, of the weights of this round."""
        outputs = torch.tensor(self.learner.labels.columns(round_name))
        with self._weights_of(round_name) as n_outputs:
            logits = self.learner.logits(round_name, data).double()
        return logits.masked_fill(outputs >= n_outputs, -torch.inf).softmax(1)

    @property
    def state_bytes(self) -> int:
        """The weights of all rounds but the newest, which are in the model."""
        older = list(self.columns.values())[:-1]
        return sum(tensor.nbytes for column in older for tensor in column.weights.values())

    @contextmanager
    def _weights_of(self, round_name: str) -> Iterator[int]:
        """Lend the learner the weights of a round; yields how many outputs they know."""
        column = self.columns.get(round_name)
        if column is None:
            yield len(self.learner.labels.names)
            return
        present = self.learner.snapshot()
        self.learner.restore(column.grown_to(present))
        try:
            yield column.n_outputs
        finally:
            self.learner.restore(present)
