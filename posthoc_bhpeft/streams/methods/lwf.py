"""LwF: learning without forgetting, by distillation from the model before the round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from posthoc_bhpeft.data import TextData
from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.streams.learner import Learner
from posthoc_bhpeft.streams.methods.method import StreamRun
from posthoc_bhpeft.streams.rounds import LabelSpace, Round


@dataclass(frozen=True)
class LwF:
    """Learning without Forgetting (Li and Hoiem, 2016, https://arxiv.org/abs/1606.09282).

    From the second round on, a row's loss is its cross-entropy plus

        weight * sum_g - sum_{c in g} softmax(z'_g / T)_c log softmax(z_g / T)_c

    with the logits z of the model in training and z' of the model before the round, both on the
    new round's rows. With a head a round, g runs over the outputs of every earlier round; with
    shared labels there is one g, all outputs known before this round. z' is computed once.

    Differences from the paper: no warm-up that trains the new outputs alone first; the trained
    part is adapter, LoRA, prefix and head on a frozen base; shared labels are not in the paper
    (they are usual since); the optimizer and the schedule of `TrainingSettings`. As in the paper
    there is no factor T^2 on the second term.

    Attributes:
        weight: lambda_o of the paper, which sets it to 1.
        temperature: T of the paper, which sets it to 2.
    """

    weight: float = 1.0
    temperature: float = 2.0

    def __post_init__(self) -> None:
        if not (self.weight >= 0.0 and self.temperature > 0.0):
            raise ConfigError(
                f"weight is {self.weight} and temperature {self.temperature}; LwF takes a weight "
                "of 0 or more and a temperature above 0."
            )

    def start(self, learner: Learner) -> StreamRun:
        """A run with this learner."""
        return _LwFRun(self, learner)


@dataclass
class _LwFRun:
    method: LwF
    learner: Learner
    #: Names of the rounds trained on.
    learnt: list[str] = field(default_factory=list)

    def learn(self, round_: Round, index: int) -> None:
        """Train on the rows of the round, held to what the model said of them before."""
        # Of the outputs as they are before the round brings new ones.
        old = output_groups(self.learner.labels, self.learnt)
        self.learner.meet(round_)
        distill = Distillation(old, self.method.weight, self.method.temperature) if old else None
        self.learner.fit(
            [(round_.name, round_.train)],
            teacher=self.learner.outputs if old else None,
            distill=distill,
            seed=self.learner.seed_of(index),
            validation=round_.validation,
        )
        if len(round_.train) and round_.name not in self.learnt:
            self.learnt.append(round_.name)

    def probabilities(self, round_name: str, data: TextData) -> Tensor:
        """(N, C_round), float64."""
        return self.learner.logits(round_name, data).double().softmax(1)

    @property
    def state_bytes(self) -> int:
        """Nothing: the model before the round is the copy that every method carries."""
        return 0


@dataclass(frozen=True)
class Distillation:
    """`weight` times the mean over rows of the cross-entropy between two tempered softmaxes.

        mean_n sum_g - sum_{c in g} softmax(z'_ng / T)_c log softmax(z_ng / T)_c

    Attributes:
        groups: sets of outputs among which the old model chose.
        weight: of the term.
        temperature: T, by which both logits are divided.
    """

    groups: tuple[tuple[int, ...], ...]
    weight: float
    temperature: float

    def __call__(self, logits: Tensor, teacher: Tensor, targets: tuple[int, ...]) -> Tensor:
        """The scalar for a batch.

        Args:
            logits: of the model in training, (N, C).
            teacher: of the old model, (N, C'), where C' <= C.
            targets: not used: the old model knows nothing of the new labels.
        """
        terms = [self._group(logits[:, list(g)], teacher[:, list(g)]) for g in self.groups]
        return self.weight * torch.stack(terms).sum(0).mean()

    def _group(self, logits: Tensor, teacher: Tensor) -> Tensor:
        """Cross-entropy (N,) over one group of outputs."""
        wanted = (teacher / self.temperature).softmax(1)
        return -(wanted * (logits / self.temperature).log_softmax(1)).sum(1)


def output_groups(labels: LabelSpace, rounds: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """The sets of outputs that rows of these rounds choose among; one set where they share it."""
    return tuple(dict.fromkeys(labels.columns(name) for name in rounds))
