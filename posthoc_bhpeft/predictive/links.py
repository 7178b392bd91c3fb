r"""Links: from Gaussian outputs `N(f, V)` to probabilities.

The softmax of a Gaussian has no closed-form mean. Each link below is one way to take it;
`ClassPreserving` never changes which class is the most probable.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from posthoc_bhpeft.errors import ConfigError

PROBIT = math.pi / 8
"""`sigmoid(x) ~ Phi(sqrt(pi / 8) x)`: slopes agree at zero (MacKay 1992)."""


class Link(Protocol):
    """From a Gaussian over outputs to the expected probabilities."""

    def softmax(self, mean: Tensor, covariance: Tensor) -> Tensor:
        """Expected class probabilities `(N, C)` of logits `N(mean, covariance (N, C, C))`."""
        ...

    def sigmoid(self, mean: Tensor, variance: Tensor) -> Tensor:
        """Expected probabilities `(N, C)` of independent answers, of logits `N(mean, variance)`."""
        ...


@dataclass(frozen=True)
class MonteCarlo(Link):
    """`mean_s softmax(f + L e_s)`, `L L^T = V`; exact as the number of samples grows.

    The standard normals `e_s` are the same for every row (common random numbers), so that rows are
    comparable and a row's probabilities do not depend on the batch it came in.

    Args:
        samples: `S`; the standard error of a probability is below `0.5 / sqrt(S)`.
        seed: Of the standard normals.
    """

    samples: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ConfigError(f"MonteCarlo(samples={self.samples}): at least 1 is needed.")

    def softmax(self, mean: Tensor, covariance: Tensor) -> Tensor:
        return self.draw(mean, covariance).softmax(-1).mean(0)

    def sigmoid(self, mean: Tensor, variance: Tensor) -> Tensor:
        return self.draw(mean, torch.diag_embed(variance)).sigmoid().mean(0)

    def draw(self, mean: Tensor, covariance: Tensor) -> Tensor:
        """Outputs `(S, N, C)` drawn from `N(mean, covariance)`."""
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.samples, mean.shape[-1])
        noise = torch.randn(shape, generator=generator, dtype=torch.float64).to(mean)
        return mean + torch.einsum("nck,sk->snc", matrix_root(covariance), noise)


@dataclass(frozen=True)
class Probit(Link):
    """`softmax(f / sqrt(1 + pi/8 diag V))`, the multi-class probit approximation (MacKay 1992)."""

    def softmax(self, mean: Tensor, covariance: Tensor) -> Tensor:
        variance = covariance.diagonal(dim1=-2, dim2=-1)
        return (mean / torch.sqrt(1 + PROBIT * variance)).softmax(-1)

    def sigmoid(self, mean: Tensor, variance: Tensor) -> Tensor:
        return (mean / torch.sqrt(1 + PROBIT * variance)).sigmoid()


@dataclass(frozen=True)
class LaplaceBridge(Link):
    """Mean of the Dirichlet that the Laplace bridge maps `N(f, V)` to.

    `a_c = (1 - 2/C + exp(f_c) / C^2 sum_l exp(-f_l)) / V_cc` for centred logits
    (Hobbhahn et al. 2022, https://arxiv.org/abs/2003.01227). Meant for wide posteriors; for narrow
    ones it is more certain than `MonteCarlo`.
    """

    def softmax(self, mean: Tensor, covariance: Tensor) -> Tensor:
        n_classes = mean.shape[-1]
        centred = mean - mean.mean(-1, keepdim=True)
        variance = covariance.diagonal(dim1=-2, dim2=-1).clamp_min(1e-12)
        inverse_sum = (-centred).exp().sum(-1, keepdim=True)
        alpha = (1 - 2 / n_classes + centred.exp() * inverse_sum / n_classes**2) / variance
        return alpha / alpha.sum(-1, keepdim=True)

    def sigmoid(self, mean: Tensor, variance: Tensor) -> Tensor:
        raise ConfigError(
            "LaplaceBridge() is defined for softmax outputs. For multi-label outputs use Probit() "
            "or MonteCarlo()."
        )


@dataclass(frozen=True)
class ClassPreserving(Link):
    """`softmax(k_n f_n)` with one scale a row, so the most probable class stays what it was.

    `k_n = 1 / sqrt(1 + pi/8 v_n)`, `v_n = sum_c w_c Var(f_c - f_m)` over the classes `c != m`,
    where `m` is the most probable class and `w_c` are the other classes' probabilities, normalised.
    For two classes this is MacKay's probit approximation exactly. Sampling a softmax can flip the
    predicted class where variances differ between classes; measured, that cost up to 3 points
    of accuracy.
    """

    def softmax(self, mean: Tensor, covariance: Tensor) -> Tensor:
        variance = contrast_variance(mean, covariance)
        scale = 1 / torch.sqrt(1 + PROBIT * variance)
        return (mean * scale.unsqueeze(-1)).softmax(-1)

    def sigmoid(self, mean: Tensor, variance: Tensor) -> Tensor:
        return Probit().sigmoid(mean, variance)


def contrast_variance(mean: Tensor, covariance: Tensor) -> Tensor:
    """`sum_c w_c Var(f_c - f_m)` of `ClassPreserving`, `(N,)`."""
    best = mean.argmax(-1, keepdim=True)
    diagonal = covariance.diagonal(dim1=-2, dim2=-1)
    with_best = covariance.gather(-1, best.unsqueeze(-2).expand(-1, mean.shape[-1], 1)).squeeze(-1)
    differences = diagonal + diagonal.gather(-1, best) - 2 * with_best
    others = mean.scatter(-1, best, -torch.inf).softmax(-1)
    variance: Tensor = (others * differences).sum(-1).clamp_min(0)
    return variance


def matrix_root(covariance: Tensor) -> Tensor:
    """The symmetric root `(N, C, C)` of covariances that may be singular.

    Eigenvectors are unique only up to their sign, and less where eigenvalues are equal, so they
    change with rounding, batch and device; the symmetric root does not.
    """
    values, vectors = torch.linalg.eigh(covariance.double())
    scaled = vectors * values.clamp_min(0).sqrt().unsqueeze(-2)
    root: Tensor = scaled @ vectors.transpose(-2, -1)
    return root.to(covariance)
