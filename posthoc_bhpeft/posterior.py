r"""`Posterior`: `N(theta, (Lambda0 + H)^-1)` in natural parameters, block by block.

The precision of a block is `d I + H` with the curvature `H` a sum over the data. Matrix-vector
products use `H` itself and are exact; sampling, log-determinants and functional variances use the
eigendecomposition of `H`, which an isotropic prior shares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from posthoc_bhpeft.blocks import Block
from posthoc_bhpeft.evidence import BlockSpectrum, LaplaceEvidence
from posthoc_bhpeft.linalg import BlockOperator, Eigenbasis
from posthoc_bhpeft.prior import GaussianPrior


@dataclass(frozen=True)
class Posterior:
    """A Gaussian over the weights of every block.

    Attributes:
        blocks: The blocks it is about.
        mean: Weights `(p, q)` of each block: the trained model's.
        prior: The prior it was made with.
        curvature: `H` of each block, the sum over data.
        bases: Eigenbasis of each `H`.
        log_likelihood: `log p(D | mean)` in nats.
        n_rows: Number of labelled rows of data.
        n_outputs: `C`, the number of outputs of the model.
    """

    blocks: tuple[Block, ...]
    mean: Mapping[str, Tensor] = field(repr=False)
    prior: GaussianPrior
    curvature: Mapping[str, BlockOperator] = field(repr=False)
    bases: Mapping[str, Eigenbasis] = field(repr=False)
    log_likelihood: float
    n_rows: int
    n_outputs: int

    def with_prior(self, prior: GaussianPrior) -> Posterior:
        """The posterior for another prior; nothing is fitted or decomposed again."""
        return replace(self, prior=prior)

    def evidence(self) -> LaplaceEvidence:
        """What the evidence depends on, apart from the prior precision."""
        return LaplaceEvidence(
            {block.name: self.spectrum(block) for block in self.blocks},
            self.log_likelihood,
            self.n_rows,
            self.n_outputs,
        )

    def spectrum(self, block: Block) -> BlockSpectrum:
        """Eigenvalues of a block's curvature and the squared movement along its eigenvectors."""
        return block_spectrum(
            block, self.bases[block.name], self.mean[block.name], self.prior.mean_of(block)
        )

    def log_marginal_likelihood(self) -> float:
        """Log evidence in nats."""
        return self.evidence().log_marginal_likelihood(self.prior.precision)

    def variances(self, block: Block) -> Tensor:
        """Variances `1 / (l + d)` along the eigenvectors of a block, `(p, q)`, float64."""
        return 1 / (self.bases[block.name].eigenvalues + self.prior.precision[block.name])

    def precision_matvec(self, block: Block, matrix: Tensor) -> Tensor:
        """`(d I + H) vec(X)` for a matrix `(..., p, q)`; exact."""
        prior = self.prior.precision[block.name] * matrix
        return prior + self.curvature[block.name].matvec(matrix)

    def precision_log_determinant(self) -> float:
        """`log det(Lambda0 + H)` over all blocks."""
        return float(sum(-self.variances(block).log().sum() for block in self.blocks))

    def sample(self, n_samples: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Draw weights.

        Args:
            n_samples: `S`.
            generator: Source of randomness; on the CPU, so that a seed means the same anywhere.

        Returns:
            Weights `(S, p, q)` of each block by name.
        """
        drawn = {}
        for block in self.blocks:
            mean = self.mean[block.name]
            noise = torch.randn(n_samples, *block.shape, generator=generator, dtype=torch.float64)
            scaled = noise.to(mean.device) * self.variances(block).to(mean.device).sqrt()
            drawn[block.name] = mean + self.bases[block.name].unproject(scaled.to(mean))
        return drawn


def block_spectrum(
    block: Block, basis: Eigenbasis, weights: Tensor, prior_mean: Tensor | None
) -> BlockSpectrum:
    """Eigenvalues and squared movement of one block, flat and in float64 on the CPU."""
    movement = weights if prior_mean is None else weights - prior_mean
    coordinates = basis.project(movement).double()
    return BlockSpectrum(
        block.kind,
        basis.eigenvalues.double().flatten().cpu(),
        coordinates.square().flatten().cpu(),
    )


def read_weights(model: nn.Module, blocks: Sequence[Block]) -> dict[str, Tensor]:
    """Present weights `(p, q)` of each block, detached copies in float32 or wider."""
    parameters = dict(model.named_parameters())
    weights = {}
    for block in blocks:
        matrix = block.view.read(parameters[block.parameter].detach())
        wide = matrix.dtype in (torch.float32, torch.float64)
        weights[block.name] = matrix.clone() if wide else matrix.float()
    return weights


def as_parameters(
    model: nn.Module, blocks: Sequence[Block], weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Whole parameters by name, from the matrices `(p, q)` of their blocks."""
    parameters = dict(model.named_parameters())
    names = dict.fromkeys(block.parameter for block in blocks)
    filled = {name: parameters[name].detach().clone() for name in names}
    for block in blocks:
        block.view.write(filled[block.parameter], weights[block.name])
    return filled
