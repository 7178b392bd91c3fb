r"""A product of Gaussians that share one prior, a block at a time.

With one prior `p0 = N(mu0, Lambda0^-1)` and data that are independent given the weights, Bayes'
rule for all data at once is a product of what each part alone has found,

    p(theta | D_1 .. D_K)  ~  p0(theta) prod_k p(D_k | theta)
                           ~  p0(theta)^(1 - K) prod_k p(theta | D_k),

and a product of Gaussians `N(mu_k, Lambda_k^-1)` adds natural parameters:

    Lambda = Lambda0 + sum_k (Lambda_k - Lambda0),
    Lambda mu = sum_k Lambda_k mu_k - (K - 1) Lambda0 mu0.

Subtracting `Lambda mu0` on both sides leaves what is solved here, one system a block:

    Lambda (mu - mu0) = sum_k Lambda_k (mu_k - mu0).

Exact where the model is linear in its weights and the likelihood Gaussian. Elsewhere as good as
Laplace's approximation is between the means, which is why the parts must have been trained from one
start and held to one prior (compare Matena and Raffel 2022, https://arxiv.org/abs/2111.09832, who
average with diagonal precisions).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from posthoc_bhpeft.blocks import Block
from posthoc_bhpeft.linalg import BlockOperator, OperatorSum, Solution, conjugate_gradients
from posthoc_bhpeft.merging.double import converted, double_like, in_double
from posthoc_bhpeft.posterior import Posterior
from posthoc_bhpeft.prior import GaussianPrior


@dataclass(frozen=True)
class System:
    """`Lambda (mu - mu0) = sum_k Lambda_k (mu_k - mu0)` of one block, in float64.

    Attributes:
        block: Which.
        prior: The common one.
        means: `mu_k` of each part.
        curvatures: `H_k = Lambda_k - Lambda0` of each part.
    """

    block: Block
    prior: GaussianPrior
    means: tuple[Tensor, ...]
    curvatures: tuple[BlockOperator, ...]

    @classmethod
    def of(cls, block: Block, posteriors: Sequence[Posterior], prior: GaussianPrior) -> System:
        """The block's part of every posterior, on the device of the first."""
        like = double_like(posteriors[0].mean[block.name])
        return cls(
            block,
            in_double(prior, block, like),
            tuple(p.mean[block.name].to(like) for p in posteriors),
            tuple(converted(p.curvature[block.name], like) for p in posteriors),
        )

    def solve(self) -> Solution:
        """`mu - mu0`, by conjugate gradients on exact products with every term."""
        floor, carried = self.prior.precision[self.block.name], self.prior.carried
        held = [carried[self.block.name]] if self.block.name in carried else []
        basis = OperatorSum((*held, *self.curvatures)).decompose(floor)
        variances = 1 / (basis.eigenvalues + floor).to(self.means[0])
        pulls = [self.pull(k, mean) for k, mean in enumerate(self.means)]
        return conjugate_gradients(
            self.precision,
            torch.stack(pulls).sum(0),
            precondition=lambda x: basis.unproject(variances * basis.project(x)),
        )

    def pull(self, k: int, mean: Tensor) -> Tensor:
        """`Lambda_k (mu_k - mu0)`."""
        moved = self.prior.movement(self.block, mean)
        return self.prior.matvec(self.block, moved) + self.curvatures[k].matvec(moved)

    def precision(self, matrix: Tensor) -> Tensor:
        """`Lambda vec(X)`."""
        total = self.prior.matvec(self.block, matrix)
        for curvature in self.curvatures:
            total = total + curvature.matvec(matrix)
        return total

    def log_likelihood_change(self, weights: Tensor) -> float:
        r"""What the log likelihood of all parts gains on the way from their means to `weights`.

        A part's own mean is the mode of its posterior, where the gradient of its log likelihood
        balances the prior, `Lambda0 (mu_k - mu0)`, and its second derivative is `-H_k`:

            log p(D_k | theta) ~ log p(D_k | mu_k) + (mu_k - mu0)^T Lambda0 (theta - mu_k)
                                 - 1/2 (theta - mu_k)^T H_k (theta - mu_k).
        """
        total = 0.0
        for mean, curvature in zip(self.means, self.curvatures, strict=True):
            step = weights.to(mean) - mean
            gradient = self.prior.matvec(self.block, self.prior.movement(self.block, mean))
            total += float((gradient * step).sum() - 0.5 * (step * curvature.matvec(step)).sum())
        return total
