"""Joint training: everything again, from the start, after every round."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import Tensor

from posthoc_bhpeft.data import TextData
from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.streams.learner import Learner
from posthoc_bhpeft.streams.methods.method import StreamRun
from posthoc_bhpeft.streams.methods.replay import text_bytes
from posthoc_bhpeft.streams.rounds import Round


@dataclass(frozen=True)
class Joint:
    """Keep all rows and train on all of them anew after each round: the mark to reach.

    Attributes:
        epochs: passes over all rows in each round; None takes those of the learner's settings.
    """

    epochs: int | None = None

    def __post_init__(self) -> None:
        if self.epochs is not None and self.epochs < 1:
            raise ConfigError(f"epochs is {self.epochs}; it must be at least 1, or None.")

    def start(self, learner: Learner) -> StreamRun:
        """A run with this learner."""
        return _JointRun(self, learner)


@dataclass
class _JointRun:
    method: Joint
    learner: Learner
    rounds: list[Round] = field(default_factory=list)

    def learn(self, round_: Round, index: int) -> None:
        """Train on the rows of all rounds, from the initial weights."""
        self.rounds.append(round_)
        self.learner.meet(round_)
        self.learner.reset()
        settings = self.learner.settings
        self.learner.fit(
            [(r.name, r.train) for r in self.rounds],
            seed=self.learner.seed_of(index),
            validation=[(r.name, r.validation) for r in self.rounds if r.validation is not None],
            settings=replace(settings, epochs=self.method.epochs or settings.epochs),
        )

    def probabilities(self, round_name: str, data: TextData) -> Tensor:
        """(N, C_round), float64."""
        return self.learner.logits(round_name, data).double().softmax(1)

    @property
    def state_bytes(self) -> int:
        """Texts of all rows so far."""
        return sum(
            text_bytes(data)
            for round_ in self.rounds
            for data in (round_.train, round_.validation)
            if data is not None
        )
