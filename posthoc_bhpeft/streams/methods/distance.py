"""L2: the weights are held near those of the round before, all of them equally."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from posthoc_bhpeft.data import TextData
from posthoc_bhpeft.errors import ConfigError, ModelError
from posthoc_bhpeft.streams.learner import Learner
from posthoc_bhpeft.streams.methods.method import StreamRun
from posthoc_bhpeft.streams.rounds import Round


@dataclass(frozen=True)
class L2Anchor:
    """L2 to the weights of the round before.

    From the second round on the loss is the cross-entropy, summed over the round's rows, plus
    `0.5 * weight * |theta - theta_previous|^2`: a Gaussian prior with the same precision for every
    weight. It is the baseline that EWC was first compared with (Kirkpatrick et al., 2017,
    https://arxiv.org/abs/1612.00796) and, for the step from pre-training to a task, L2-SP (Li et
    al., 2018, https://arxiv.org/abs/1802.01483).

    Outputs that came with the present round have no earlier value, so they are free; L2-SP pulls
    new weights to zero instead. No paper gives a weight that would carry over to other models, so
    there is no default. AdamW's weight decay, from `TrainingSettings`, stays on.

    Attributes:
        weight: the precision of the prior, in nats per squared unit of weight.
    """

    weight: float

    def __post_init__(self) -> None:
        if not self.weight >= 0.0:
            raise ConfigError(f"weight is {self.weight}; a precision is 0 or more.")

    def start(self, learner: Learner) -> StreamRun:
        """A run with this learner."""
        return _AnchoredRun(self, learner)


class DistancePenalty:
    """`0.5 * weight * |theta - anchor|^2`, over the rows that the anchor has.

    Args:
        anchor: earlier values by parameter name; a head may have grown more rows since.
        weight: the precision, in nats per squared unit of weight.
    """

    def __init__(self, anchor: Mapping[str, Tensor], weight: float) -> None:
        self._anchor, self._weight = dict(anchor), weight

    def penalty(self, model: nn.Module) -> Tensor:
        """The scalar, differentiable with respect to every anchored tensor.

        Raises:
            ModelError: the model lacks a tensor that the anchor has.
        """
        parameters = dict(model.named_parameters())
        if missing := self._anchor.keys() - parameters.keys():
            raise ModelError(
                f"The anchor holds {len(missing)} tensors that the model has not (first: "
                f"{min(missing)!r}). It takes the model whose weights it was made from."
            )
        squares = [
            (parameters[name][: len(old)] - old.to(parameters[name])).square().sum()
            for name, old in self._anchor.items()
        ]
        return 0.5 * self._weight * torch.stack(squares).sum()


@dataclass
class _AnchoredRun:
    method: L2Anchor
    learner: Learner
    trained: bool = False

    def learn(self, round_: Round, index: int) -> None:
        """Train from the previous weights, held near them."""
        # Before the head grows: rows that are not in the anchor are free.
        anchor = self.learner.snapshot() if self.trained else None
        self.learner.meet(round_)
        self.learner.fit(
            [(round_.name, round_.train)],
            penalty=None if anchor is None else DistancePenalty(anchor, self.method.weight),
            seed=self.learner.seed_of(index),
            validation=round_.validation,
        )
        self.trained = self.trained or len(round_.train) > 0

    def probabilities(self, round_name: str, data: TextData) -> Tensor:
        """(N, C_round), float64."""
        return self.learner.logits(round_name, data).double().softmax(1)

    @property
    def state_bytes(self) -> int:
        """Nothing: the anchor is the copy of the weights that every method carries."""
        return 0
