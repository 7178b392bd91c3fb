r"""`consolidated`: a chained posterior, moved to the mean that its own curvature asks for.

After training on new data the weights `theta` have moved from the prior's mean `mu0` further than
the new data need: along directions that its curvature `H` does not see, gradient noise moves them
freely, and a penalty holds them back only as far as the optimizer follows it. What the two
quadratics themselves ask for is

    mu = argmin  (m - mu0)^T (K + d I) (m - mu0) + (m - theta)^T H (m - theta),

the mean of the product of what the earlier data have found and what the new data have
(compare `merging.product`). Directions that earlier data hold and the new do not need go back;
those that the new data determine stay.

It takes `theta` for a minimum of the new data's own loss, which is what training with few labels
comes near to: they are fitted, and their gradient has vanished. At an exact mode of loss *and*
penalty the earlier data have pulled already and would be counted twice; there, `theta` is the mean.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from posthoc_bhpeft.blocks import Block
from posthoc_bhpeft.linalg import conjugate_gradients
from posthoc_bhpeft.merging.double import converted, double_like, in_double
from posthoc_bhpeft.posterior import Posterior

TOLERANCE = 1e-4
"""Of the solution, relative: far below what the quadratics themselves are off."""


def consolidated(posterior: Posterior, *, floor: float) -> Posterior:
    """The posterior with its mean at the minimum of its own two quadratics.

    The log likelihood is carried along by its quadratic, `-1/2 (mu - theta)^T H (mu - theta)`.

    Args:
        posterior: Under a prior that carries curvature, at the trained weights.
        floor: `d` of the quadratics; the posterior's own may be far higher, for it was chosen so
            that predictions are calibrated and is no belief about where the weights are.

    Returns:
        The same posterior with another mean.

    Raises:
        ConvergenceError: If the linear system of a block is not solved.
    """
    mean, change = {}, 0.0
    for block in posterior.blocks:
        step, loss = step_of(posterior, block, floor)
        now = posterior.mean[block.name]
        mean[block.name] = (now + step.to(now.device)).to(now)
        change -= loss
    return replace(posterior, mean=mean, log_likelihood=posterior.log_likelihood + change)


def step_of(posterior: Posterior, block: Block, floor: float) -> tuple[Tensor, float]:
    """`mu - theta` of a block in float64, and the log likelihood that it costs, in nats.

    Solves `(d I + K + H)(mu - theta) = (d I + K)(mu0 - theta)` by conjugate gradients with exact
    products, preconditioned by the posterior's eigenbasis.
    """
    name, like = block.name, double_like(posterior.mean[block.name])
    prior = in_double(replace(posterior.prior, precision={name: floor}), block, like)
    curvature = converted(posterior.curvature[name], like)
    basis = posterior.bases[name]
    variances = 1 / (basis.eigenvalues + floor).to(like)
    solution = conjugate_gradients(
        lambda x: prior.matvec(block, x) + curvature.matvec(x),
        -prior.matvec(block, prior.movement(block, posterior.mean[name].to(like))),
        precondition=lambda x: basis.unproject(variances * basis.project(x)),
        tolerance=TOLERANCE,
        max_iterations=5000,
    )
    loss = 0.5 * float(torch.sum(solution.x * curvature.matvec(solution.x)))
    return solution.x, loss
