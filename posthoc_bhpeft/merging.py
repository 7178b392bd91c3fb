r"""`merge`: one posterior from several that were fitted apart, without moving any data.

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

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from posthoc_bhpeft.api import BayesianPeft
from posthoc_bhpeft.blocks import Block, Kind
from posthoc_bhpeft.errors import CheckpointError, ConfigError, ModelError
from posthoc_bhpeft.linalg import (
    BlockOperator,
    OperatorSum,
    Solution,
    conjugate_gradients,
    merge_terms,
)
from posthoc_bhpeft.matching import check_frozen, frozen_samples
from posthoc_bhpeft.posterior import Posterior, as_parameters, decompose, read_weights
from posthoc_bhpeft.prior import GaussianPrior

SAME = 1e-5
"""Relative difference up to which two priors are one: the rounding of single precision."""
RELATED = 0.3
"""Cosine below which two adapters have no start in common; see `check_common_start`."""


def merge(
    bayes: Sequence[BayesianPeft], *, prior: GaussianPrior, max_terms: int = 2
) -> BayesianPeft:
    """The posterior of all data, from posteriors that were each fitted on a part of them.

    ```python
    prior = GaussianPrior.isotropic(blocks, 30.0, mean=read_weights(model, blocks))
    # in each place: train a copy of model with prior.penalty, then
    bayes_k = bayesianize(model_k, loader_k, prior=prior)
    bayes = merge([bayes_1, bayes_2], prior=prior)
    ```

    The mean is solved for exactly, with every Kronecker term as it is; only then are terms merged.

    Args:
        bayes: Two or more, over the same blocks, trained from the same weights.
        prior: The one that all of them were fitted with; counted once.
        max_terms: Kronecker terms to keep in the curvature of each block; see `merge_terms`.

    Returns:
        A Bayesian model on a copy of the first one's model, at the merged mean. Its log likelihood
        is the sum of the parts' quadratic approximations; see `log_likelihood_at`.

    Raises:
        ConfigError: If there are fewer than two, or they differ in blocks, outputs, label names,
            likelihood or prior, or in where their training started.
        ModelError: If the models below the adapters differ.
        ConvergenceError: If a system is too ill conditioned to be solved.
    """
    if len(bayes) < 2:
        raise ConfigError(f"merge takes two posteriors or more, got {len(bayes)}.")
    first = bayes[0]
    for index, other in enumerate(bayes[1:], start=2):
        check_alike(first, other, index)
    for index, one in enumerate(bayes, start=1):
        prior.check_blocks(one.blocks)
        check_prior(one.posterior, prior, index)
    posteriors = [one.posterior for one in bayes]
    check_common_start(posteriors, prior)
    systems = [System.of(block, posteriors, prior) for block in first.blocks]
    solutions = {system.block.name: system.solve() for system in systems}
    model = copy.deepcopy(first.model)
    place(model, systems, solutions)
    mean = read_weights(model, first.blocks)
    curvature, errors = summed_curvature(posteriors, max_terms)
    prior = replace(prior, blocks=first.blocks)
    merged = Posterior(
        first.blocks,
        mean,
        prior,
        curvature,
        {name: decompose(prior, name, operator) for name, operator in curvature.items()},
        sum(p.log_likelihood for p in posteriors)
        + sum(system.log_likelihood_change(mean[system.block.name]) for system in systems),
        sum(p.n_rows for p in posteriors),
        first.posterior.n_outputs,
    )
    return replace(
        first, model=model, posterior=merged, reason=describe(posteriors, solutions, errors)
    )


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


def double_like(tensor: Tensor) -> Tensor:
    """An empty float64 tensor on the device, or on the CPU where the device has no float64."""
    device = "cpu" if tensor.device.type == "mps" else tensor.device
    return torch.empty(0, dtype=torch.float64, device=device)


def converted(operator: BlockOperator, like: Tensor) -> BlockOperator:
    """The same operator in the dtype and on the device of a tensor."""
    if isinstance(operator, OperatorSum):
        return OperatorSum(tuple(converted(term, like) for term in operator.terms))
    fields = {name: tensor.to(like) for name, tensor in operator.tensors().items()}
    return cast(BlockOperator, replace(cast(Any, operator), **fields))


def in_double(prior: GaussianPrior, block: Block, like: Tensor) -> GaussianPrior:
    """One block's share of a prior, in float64 on a device."""
    name = block.name
    return GaussianPrior(
        {name: prior.precision[name]},
        {name: prior.mean[name].to(like)} if name in prior.mean else {},
        {name: converted(prior.carried[name], like)} if name in prior.carried else {},
    )


def place(model: nn.Module, systems: Sequence[System], solutions: Mapping[str, Solution]) -> None:
    """Put the merged means into a model."""
    blocks = [system.block for system in systems]
    weights = {}
    for system in systems:
        x = solutions[system.block.name].x
        mean = system.prior.mean_of(system.block)
        weights[system.block.name] = x if mean is None else x + mean
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in as_parameters(model, blocks, weights).items():
            parameters[name].copy_(tensor)


def summed_curvature(
    posteriors: Sequence[Posterior], max_terms: int
) -> tuple[dict[str, BlockOperator], dict[str, float]]:
    """`sum_k H_k` of every block in at most so many terms, and the errors of merging them."""
    curvature: dict[str, BlockOperator] = {}
    errors = {}
    for name, mean in posteriors[0].mean.items():
        terms = OperatorSum(tuple(converted(p.curvature[name], mean) for p in posteriors))
        merged = merge_terms(terms, max_terms)
        curvature[name] = merged.operator
        if merged.errors:
            errors[name] = merged.total_error
    return curvature, errors


def describe(
    posteriors: Sequence[Posterior],
    solutions: Mapping[str, Solution],
    errors: Mapping[str, float],
) -> str:
    """What was merged and how well, for people."""
    rows = " + ".join(str(posterior.n_rows) for posterior in posteriors)
    steps = max(solution.iterations for solution in solutions.values())
    reason = (
        f"Merged from {len(posteriors)} posteriors over {rows} rows that share one prior; means "
        f"solved for in up to {steps} conjugate gradient steps. The log likelihood is the parts' "
        "quadratic approximation."
    )
    if errors:
        worst = max(errors, key=errors.__getitem__)
        reason += (
            f" Their curvatures were merged with a relative error of up to {errors[worst]:.2g} "
            f"({worst})."
        )
    return reason


# ---------------------------------------------------------------- what can be merged


def check_alike(first: BayesianPeft, other: BayesianPeft, index: int) -> None:
    """Raise unless two fits are about the same weights of the same model, with the same labels.

    Raises:
        ConfigError: If they differ in blocks, outputs, label names or likelihood.
        ModelError: If the models below the adapters differ.
    """
    outputs = first.posterior.n_outputs, other.posterior.n_outputs
    if outputs[0] != outputs[1]:
        raise ConfigError(
            f"Posterior {index} has {outputs[1]} outputs and the first {outputs[0]}. Only models "
            "with one set of labels can be merged: train them with all labels, each on the rows "
            "it has."
        )
    names = [getattr(getattr(b.model, "config", None), "id2label", None) for b in (first, other)]
    if names[0] != names[1]:
        raise ConfigError(
            f"The outputs of posterior {index} stand for {names[1]}, those of the first for "
            f"{names[0]}. Give both the same labels in the same order before training."
        )
    shapes = [{block.name: block.shape for block in b.blocks} for b in (first, other)]
    for name in dict.fromkeys([*shapes[0], *shapes[1]]):
        if shapes[0].get(name) != shapes[1].get(name):
            raise ConfigError(
                f"Block {name!r} has shape {shapes[1].get(name, 'none')} in posterior {index} and "
                f"{shapes[0].get(name, 'none')} in the first. Only adapters of one configuration "
                "can be merged."
            )
    if first.likelihood != other.likelihood:
        raise ConfigError(
            f"Posterior {index} was fitted with {other.likelihood} and the first with "
            f"{first.likelihood}. Fit all with one: bayesianize(..., likelihood=...)."
        )
    try:
        check_frozen(other.model, frozen_samples(first.model))
    except CheckpointError as error:
        raise ModelError(
            f"Posterior {index} is about another model than the first. {error}"
        ) from error


def check_prior(posterior: Posterior, prior: GaussianPrior, index: int) -> None:
    """Raise unless a posterior was fitted with a prior; compared by what it does to a matrix.

    Raises:
        ConfigError: Naming the first block where they differ.
    """
    generator = torch.Generator().manual_seed(0)
    for block in posterior.blocks:
        like = double_like(posterior.mean[block.name])
        own, common = (in_double(p, block, like) for p in (posterior.prior, prior))
        probe = torch.randn(block.shape, generator=generator, dtype=torch.float64).to(like)
        for what, one, other in (
            ("precision", own.matvec(block, probe), common.matvec(block, probe)),
            ("mean", own.movement(block, 0 * probe), common.movement(block, 0 * probe)),
        ):
            if float((one - other).norm()) > SAME * float(other.norm()):
                raise ConfigError(
                    f"Posterior {index} was fitted with another prior than prior=: its {what} "
                    f"differs in block {block.name!r}. Parts can only be merged if they share one "
                    "prior, which then counts once. Train each with prior.penalty(model), and fit "
                    "it with bayesianize(model, loader, prior=prior)."
                )


def check_common_start(posteriors: Sequence[Posterior], prior: GaussianPrior) -> None:
    """Raise where adapters were evidently trained from different random weights.

    LoRA's `B A`, the units of a bottleneck and the tokens of a prefix can be turned or permuted
    without any effect on the outputs, so two trainings that start apart end apart, and between them
    lies nothing. What a start was cannot be read off a posterior for certain. What can be seen is
    whether there is any likeness left: weights trained from one start keep a cosine well above zero
    to it and to each other, those from different random ones have none. So adapters are compared
    with the prior's mean, or where it has none with each other.

    Raises:
        ConfigError: If the cosine over all LoRA, adapter and prefix blocks is below `RELATED`.
    """
    kinds = (Kind.LORA, Kind.ADAPTER, Kind.PREFIX)
    blocks = [block for block in posteriors[0].blocks if block.kind in kinds]
    common = [block for block in blocks if block.name in prior.mean]
    compared, anchor = (common, prior.mean) if common else (blocks, posteriors[0].mean)
    for index, posterior in enumerate(posteriors, start=1):
        cosine = likeness(compared, posterior.mean, anchor)
        if cosine < RELATED:
            raise ConfigError(
                f"The adapter of posterior {index} has a cosine of {cosine:.2f} to "
                f"{'the mean of prior=' if common else 'that of posterior 1'}: they were not "
                "trained from the same weights, or far away from them. Start every part from a "
                "copy of one model, random or tuned on some rows, and hold it there with a prior: "
                "GaussianPrior.isotropic(blocks, precision, mean=read_weights(model, blocks))."
            )


def likeness(
    blocks: Sequence[Block], one: Mapping[str, Tensor], other: Mapping[str, Tensor]
) -> float:
    """Cosine of two sets of weights over some blocks; 1 where either is zero."""
    inner, first, second = 0.0, 0.0, 0.0
    for block in blocks:
        a = one[block.name].double()
        b = other[block.name].to(a)
        inner += float((a * b).sum())
        first += float(a.square().sum())
        second += float(b.square().sum())
    return inner / (first * second) ** 0.5 if first and second else 1.0
