"""`Mixture`: softmax probabilities averaged over drawn weights, one draw at a time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from posthoc_bhpeft.predictive.links import entropy


@dataclass(frozen=True)
class Mixture:
    """Class probabilities under uncertain weights, and what part of their entropy is whose.

    Attributes:
        mean: `E p`, `(..., C)`.
        aleatoric: `E H[p]`, `(...)`, in nats.
    """

    mean: Tensor
    aleatoric: Tensor

    @classmethod
    def of(cls, draws: Iterable[Tensor]) -> Mixture:
        """Of logits `(..., C)`, each draw let go before the next: `S` vocabularies are too much."""
        mean, aleatoric, n_draws = torch.zeros(()), torch.zeros(()), 0
        for logits in draws:
            drawn = logits.softmax(-1)
            mean, aleatoric = mean.to(drawn) + drawn, aleatoric.to(drawn) + entropy(drawn)
            n_draws += 1
        return cls(mean / n_draws, aleatoric / n_draws)

    @property
    def total(self) -> Tensor:
        """`H[E p]`, `(...)`."""
        return entropy(self.mean)

    @property
    def epistemic(self) -> Tensor:
        """`H[E p] - E H[p]`, the information that the weights hold about the class, `(...)`."""
        return (self.total - self.aleatoric).clamp_min(0)
