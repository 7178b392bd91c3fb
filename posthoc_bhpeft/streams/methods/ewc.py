r"""`EWC`: elastic weight consolidation, the diagonal penalty that everybody compares with.

After each round the diagonal of its curvature `D_t` is kept with the weights of then, and later
rounds are trained against `1/2 weight sum_t (theta - theta_t)^T D_t (theta - theta_t)`
(Kirkpatrick et al. 2017, https://arxiv.org/abs/1612.00796, one term a round), or *online* against
one pooled term `1/2 weight (theta - theta_last)^T (sum_t D_t) (theta - theta_last)` (Huszar 2018,
https://arxiv.org/abs/1712.03847; Schwarz et al. 2018, https://arxiv.org/abs/1805.06370).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from posthoc_bhpeft.blocks import discover
from posthoc_bhpeft.curvature import Curvature, DiagonalGGN, EmpiricalFisher, fit_curvature
from posthoc_bhpeft.data import TextData
from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.likelihood import Categorical
from posthoc_bhpeft.linalg import OperatorSum, merge_terms
from posthoc_bhpeft.posterior import read_weights
from posthoc_bhpeft.prior import GaussianPrior
from posthoc_bhpeft.streams.learner import Learner
from posthoc_bhpeft.streams.rounds import Round

NO_FLOOR = 1e-12
"""EWC has no isotropic part; a Gaussian needs one, however small."""


@dataclass(frozen=True)
class EWC:
    """Elastic weight consolidation over all trained weights.

    Args:
        weight: Of the penalty; 1 would be Bayes' rule for a diagonal curvature.
        curvature: Of each round; by default the empirical Fisher as in the paper's code. With
            `DiagonalGGN()` the diagonal of the GGN, which does not vanish once labels are fitted.
        online: One pooled term instead of one a round, so that the state does not grow.
    """

    weight: float = 1.0
    curvature: Curvature = field(default_factory=lambda: DiagonalGGN(EmpiricalFisher()))
    online: bool = False

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ConfigError(f"EWC(weight={self.weight!r}): it must be above 0.")

    def start(self, learner: Learner) -> EWCRun:
        """Nothing is remembered yet."""
        return EWCRun(self, learner)


class EWCRun:
    """EWC at work: its terms so far."""

    def __init__(self, method: EWC, learner: Learner) -> None:
        self.method, self.learner = method, learner
        self.terms: list[GaussianPrior] = []

    def learn(self, round_: Round, index: int) -> None:
        """Train against the terms, then add the round's own."""
        learner = self.learner
        learner.meet(round_)
        self.terms = [term.grown(learner.model) for term in self.terms]
        penalty = Penalties([term.tempered(self.method.weight) for term in self.terms])
        learner.fit(
            [(round_.name, round_.train)],
            penalty=penalty if self.terms else None,
            seed=learner.seed_of(index),
            validation=round_.validation,
        )
        # Neither no row nor a softmax over one output has a curvature to remember.
        if len(round_.train) and len(learner.labels.columns(round_.name)) > 1:
            self.remember(round_, index)

    def remember(self, round_: Round, index: int) -> None:
        """The curvature of the round, with the weights of now."""
        learner = self.learner
        with learner.facing(round_.name):
            blocks = discover(learner.model)
            fitted = fit_curvature(
                learner.model,
                blocks,
                learner.loader(round_.name, round_.train),
                Categorical(),
                self.method.curvature,
                generator=torch.Generator().manual_seed(learner.seed_of(index)),
            )
            mean = read_weights(learner.model, blocks)
        sums = {name: OperatorSum((operator,)) for name, operator in fitted.operators.items()}
        if self.method.online and self.terms:
            (earlier,) = self.terms
            sums = {
                name: merge_terms(OperatorSum((earlier.carried[name], own)), 1).operator
                for name, own in sums.items()
            }
            self.terms = []
        floor = {block.name: NO_FLOOR for block in blocks}
        self.terms.append(GaussianPrior(floor, mean, sums, blocks))

    def probabilities(self, round_name: str, data: TextData) -> Tensor:
        """Softmax of the trained model."""
        return self.learner.logits(round_name, data).double().softmax(-1)

    @property
    def state_bytes(self) -> int:
        """Diagonals, and the weights they are around but for the last, which the model has."""
        diagonals = [
            tensor
            for term in self.terms
            for operator in term.carried.values()
            for tensor in operator.tensors().values()
        ]
        means = [mean for term in self.terms[:-1] for mean in term.mean.values()]
        return sum(t.numel() * t.element_size() for t in [*diagonals, *means])


@dataclass(frozen=True)
class Penalties:
    """A sum of penalties."""

    terms: Sequence[GaussianPrior]

    def penalty(self, model: nn.Module) -> Tensor:
        """In nats over the whole data."""
        return torch.stack([term.penalty(model) for term in self.terms]).sum()
