"""What a method of learning from a stream is."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from posthoc_bhpeft.data import TextData
from posthoc_bhpeft.streams.learner import Learner
from posthoc_bhpeft.streams.rounds import Round


class StreamMethod(Protocol):
    """A method as a value: its settings, and the way to start it."""

    def start(self, learner: Learner) -> StreamRun:
        """A run with this learner, which has met no round and belongs to the run from now on."""
        ...


class StreamRun(Protocol):
    """A method at work on a stream."""

    def learn(self, round_: Round, index: int) -> None:
        """Learn a round, the `index`-th from 0; rows of earlier rounds are not given again."""
        ...

    def probabilities(self, round_name: str, data: TextData) -> Tensor:
        """Probabilities (N, C_round), float64 on the CPU, in the order of the rows."""
        ...

    @property
    def state_bytes(self) -> int:
        """Bytes carried to the next round beyond one copy of the trained weights.

        Rows that are kept count as the UTF-8 bytes of their texts.
        """
        ...
