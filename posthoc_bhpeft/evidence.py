r"""The Laplace evidence, and one-dimensional searches over the prior precision.

With curvature eigenvalues `l_i` and prior precision `d_i`, and `z_i` the coordinates of
`theta - mu0` in the eigenbasis of each block (so that `sum z_i^2 = |theta - mu0|^2`),

    log p(D) ~ log p(D | theta) - 1/2 sum_i [ d_i z_i^2 + log(l_i + d_i) - log d_i ]

(MacKay 1992; Immer et al. 2021, https://arxiv.org/abs/2104.04975). Because the eigenbasis of an
isotropic prior is any basis, nothing is decomposed again while the precision is searched.

`gamma(d) = sum_i l_i / (l_i + d)` is the effective number of parameters: those the data determine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from posthoc_bhpeft.blocks import Kind

LOWEST, HIGHEST = 1e-8, 1e12
"""Precisions are searched between these; outside, prior or data would not matter at all."""


@dataclass(frozen=True)
class BlockSpectrum:
    """What evidence needs to know about one block.

    Attributes:
        kind: The block's kind, for grouping.
        eigenvalues: `l_i`, float64, flat `(P,)`.
        squared_movement: `z_i^2`, float64, flat `(P,)`.
    """

    kind: Kind
    eigenvalues: Tensor
    squared_movement: Tensor


@dataclass(frozen=True)
class LaplaceEvidence:
    """Everything the evidence depends on, apart from the prior precision.

    Attributes:
        spectra: One spectrum a block, by name.
        log_likelihood: `sum_n log p(y_n | f_n)` in nats at the model's weights.
        n_rows: Labelled rows of data.
        n_outputs: `C`.
        learns_noise: A Gaussian likelihood whose noise variance is to be chosen: spectra and log
            likelihood are for variance 1.
    """

    spectra: Mapping[str, BlockSpectrum]
    log_likelihood: float
    n_rows: int
    n_outputs: int
    learns_noise: bool = False

    def at_noise(self, variance: float) -> LaplaceEvidence:
        """The same evidence for another noise variance of a Gaussian likelihood."""
        if not self.learns_noise:
            return self
        spectra = {
            name: BlockSpectrum(s.kind, s.eigenvalues / variance, s.squared_movement)
            for name, s in self.spectra.items()
        }
        n = self.n_rows * self.n_outputs
        log_likelihood = -0.5 * (
            self.squared_error / variance + n * math.log(2 * math.pi * variance)
        )
        return LaplaceEvidence(spectra, log_likelihood, self.n_rows, self.n_outputs)

    @property
    def squared_error(self) -> float:
        """`sum_n |y_n - f_n|^2`, of a Gaussian likelihood at variance 1."""
        n = self.n_rows * self.n_outputs
        return -2 * self.log_likelihood - n * math.log(2 * math.pi)

    def log_marginal_likelihood(self, precision: Mapping[str, float]) -> float:
        """Log evidence in nats for one precision a block."""
        penalty = 0.0
        for name, spectrum in self.spectra.items():
            delta = precision[name]
            log_ratio = torch.log1p(spectrum.eigenvalues / delta).sum()
            penalty += float(delta * spectrum.squared_movement.sum() + log_ratio)
        return self.log_likelihood - 0.5 * penalty

    def effective_parameters(self, precision: Mapping[str, float]) -> dict[str, float]:
        """`gamma` of each block."""
        return {
            name: float((s.eigenvalues / (s.eigenvalues + precision[name])).sum())
            for name, s in self.spectra.items()
        }


def best_precision(spectra: Sequence[BlockSpectrum]) -> float:
    """The precision that maximises the evidence of one group of blocks.

    The derivative in `log d` is `1/2 (gamma(d) - d |theta - mu0|^2)`, a falling function of `d`, so
    there is one maximum, at MacKay's fixed point, and bisection finds it.

    Args:
        spectra: Blocks that share one precision.

    Returns:
        The precision, within `LOWEST` and `HIGHEST`.
    """
    eigenvalues = torch.cat([s.eigenvalues for s in spectra])
    movement = float(sum(s.squared_movement.sum() for s in spectra))
    return bisect_log(
        lambda d: float((eigenvalues / (eigenvalues + d)).sum()) - d * movement,
    )


def best_visible_precision(spectra: Sequence[BlockSpectrum]) -> float:
    """The fixed point `d = gamma(d) / v(d)`, counting only the movement that the data can see.

    `v(d) = sum_i l_i / (l_i + d) z_i^2`. Gradient noise moves weights along directions that no
    training output depends on; such drift says nothing about the width of the prior, but plain
    evidence takes it for signal and widens.

    Args:
        spectra: Blocks that share one precision.

    Returns:
        The precision, within `LOWEST` and `HIGHEST`.
    """
    eigenvalues = torch.cat([s.eigenvalues for s in spectra])
    movement = torch.cat([s.squared_movement for s in spectra])
    return bisect_log(
        lambda d: float((eigenvalues / (eigenvalues + d) * (1 - d * movement)).sum()),
    )


def bisect_log(falling: Callable[[float], float], steps: int = 80) -> float:
    """A zero, in log scale between `LOWEST` and `HIGHEST`, of a function positive below it.

    Returns the bound it runs into where there is no sign change.
    """
    low, high = math.log(LOWEST), math.log(HIGHEST)
    for _ in range(steps):
        middle = 0.5 * (low + high)
        if falling(math.exp(middle)) > 0:
            low = middle
        else:
            high = middle
    return math.exp(0.5 * (low + high))
