"""Replay: a part of the old rows is kept and trained on again among the new ones."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from posthoc_bhpeft.data import TextData
from posthoc_bhpeft.data.rows import shuffled
from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.streams.learner import Learner
from posthoc_bhpeft.streams.methods.method import StreamRun
from posthoc_bhpeft.streams.rounds import Round


@dataclass(frozen=True)
class Replay:
    """Train on the new rows, from the previous weights, with kept rows of old rounds among them.

    Of each round a share is kept, drawn from every class alike (experience replay with stratified
    reservoirs; Chaudhry et al., 2019, https://arxiv.org/abs/1902.10486).

    Attributes:
        share: of each round's training rows; at least one row a class is kept.
    """

    share: float = 0.02

    def __post_init__(self) -> None:
        if not 0.0 < self.share <= 1.0:
            raise ConfigError(f"share is {self.share}; it must lie above 0, and 1 at most.")

    def start(self, learner: Learner) -> StreamRun:
        """A run with this learner."""
        return _ReplayRun(self, learner)


@dataclass
class _ReplayRun:
    method: Replay
    learner: Learner
    kept: list[tuple[str, TextData]] = field(default_factory=list)

    def learn(self, round_: Round, index: int) -> None:
        """Train on the rows of the round and those kept, then keep some of the round."""
        seed = self.learner.seed_of(index)
        self.learner.meet(round_)
        if len(round_.train) == 0:
            return
        self.learner.fit(
            [*self.kept, (round_.name, round_.train)], seed=seed, validation=round_.validation
        )
        self.kept.append((round_.name, stratified_share(round_.train, self.method.share, seed)))

    def probabilities(self, round_name: str, data: TextData) -> Tensor:
        """(N, C_round), float64."""
        return self.learner.logits(round_name, data).double().softmax(1)

    @property
    def state_bytes(self) -> int:
        """Texts of the rows kept."""
        return sum(text_bytes(data) for _, data in self.kept)


def stratified_share(data: TextData, share: float, seed: int) -> TextData:
    """About this share of the rows of every class, at least one of each, in their old order.

    Args:
        data: labelled rows.
        share: above 0, and 1 at most.
        seed: decides which rows.
    """
    by_class: dict[int, list[int]] = {}
    for row, label in enumerate(data.labels or ()):
        by_class.setdefault(int(label), []).append(row)
    kept: list[int] = []
    for label, rows in by_class.items():
        kept += shuffled(rows, seed + label)[: max(round(share * len(rows)), 1)]
    return data.take(sorted(kept))


def text_bytes(data: TextData) -> int:
    """UTF-8 bytes of all texts."""
    texts = (*data.texts, *(data.text_pairs or ()))
    return sum(len(text.encode()) for text in texts)
