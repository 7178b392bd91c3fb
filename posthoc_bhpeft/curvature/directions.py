r"""Output directions: which gradients `G_nk` of `f_n . v_nk` a curvature estimator sums over.

With `S_n S_n^T = H_n` (the Hessian of the likelihood in the outputs) and columns `s_nk`, the GGN is
`sum_n sum_k vec(G_nk) vec(G_nk)^T`, one backward pass a column. `Exact` and `Contrasts` sum over
all columns; `RandomSigns` replaces them by a few random combinations with the same expectation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.likelihood import Likelihood


class Directions(Protocol):
    """Chooses the output directions of one batch."""

    def draw(
        self,
        likelihood: Likelihood,
        outputs: Tensor,
        labels: Tensor,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Directions `(K, N, ...)` for outputs `(N, ...)` of labelled rows: `K` backward passes."""
        ...


@dataclass(frozen=True)
class Exact(Directions):
    """All `C` columns of the Hessian's square root; exact, `C` backward passes."""

    def draw(
        self,
        likelihood: Likelihood,
        outputs: Tensor,
        labels: Tensor,
        generator: torch.Generator | None,
    ) -> Tensor:
        return likelihood.root(outputs, labels, reduced=False)


@dataclass(frozen=True)
class Contrasts(Directions):
    """The columns of a root of least rank: `C - 1` for a softmax; exact as well, and cheaper."""

    def draw(
        self,
        likelihood: Likelihood,
        outputs: Tensor,
        labels: Tensor,
        generator: torch.Generator | None,
    ) -> Tensor:
        return likelihood.root(outputs, labels, reduced=True)


@dataclass(frozen=True)
class RandomSigns(Directions):
    """`v = S eps / sqrt(K)` with independent signs `eps`: unbiased, `samples` backward passes.

    `E[v v^T] = S E[eps eps^T] S^T = H`, so the expected curvature is the GGN whatever `C` is
    (Hutchinson's estimator; Rademacher signs have the smallest variance of those with iid entries).
    """

    samples: int = 1

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ConfigError(f"RandomSigns(samples={self.samples}): at least 1 is needed.")

    def draw(
        self,
        likelihood: Likelihood,
        outputs: Tensor,
        labels: Tensor,
        generator: torch.Generator | None,
    ) -> Tensor:
        signed = likelihood.signed_root(outputs, labels, self.samples, generator)
        return signed / math.sqrt(self.samples)


@dataclass(frozen=True)
class Auto(Directions):
    """`Contrasts` where they need at most `max_passes` backward passes, else `RandomSigns`.

    The choice depends on the number of outputs only, so it is the same for every batch. Labels at
    every position of a text would take passes for each of them, so there it is `RandomSigns`.
    """

    max_passes: int = 3

    def choose(self, likelihood: Likelihood, n_outputs: int) -> Contrasts | RandomSigns:
        """The directions for a model with `C = n_outputs`."""
        if likelihood.rank(n_outputs) <= self.max_passes:
            return Contrasts()
        return RandomSigns(samples=2)

    def draw(
        self,
        likelihood: Likelihood,
        outputs: Tensor,
        labels: Tensor,
        generator: torch.Generator | None,
    ) -> Tensor:
        chosen = self.choose(likelihood, outputs.shape[-1])
        return chosen.draw(likelihood, outputs, labels, generator)


@dataclass(frozen=True)
class Softened(Directions):
    r"""Directions at outputs divided by `T`: what leaving a model would cost, however well fitted.

        sum_k v_k v_k^T = H(f / T),   the Hessian in f of T^2 KL(softmax(f / T) || softmax(. / T))

    so it is the GGN of distilling the model at temperature `T`
    (Hinton et al. 2015, https://arxiv.org/abs/1503.02531). Where a model has fitted its labels its
    softmax is saturated and `H(f)` nearly zero, however much the outputs matter; `H(f / T)` is not.
    `T = 1` is the GGN itself. For penalties, not for the widths of predictions.

    Args:
        temperature: `T`, above 0.
        directions: Of the softened outputs.
    """

    temperature: float = 4.0
    directions: Directions = field(default_factory=Auto)

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ConfigError(f"Softened(temperature={self.temperature!r}): it must be above 0.")

    def draw(
        self,
        likelihood: Likelihood,
        outputs: Tensor,
        labels: Tensor,
        generator: torch.Generator | None,
    ) -> Tensor:
        return self.directions.draw(likelihood, outputs / self.temperature, labels, generator)


@dataclass(frozen=True)
class EmpiricalFisher(Directions):
    """The gradient of the negative log likelihood itself; one backward pass.

    Not an estimate of the GGN: it vanishes as the model fits its labels, and its relative error is
    near 1 on trained models (Kunstner et al. 2019, https://arxiv.org/abs/1905.12558). Here for
    comparison, because it is what much EWC code uses.
    """

    def draw(
        self,
        likelihood: Likelihood,
        outputs: Tensor,
        labels: Tensor,
        generator: torch.Generator | None,
    ) -> Tensor:
        return likelihood.output_gradient(outputs, labels).unsqueeze(0)
