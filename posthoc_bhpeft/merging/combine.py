"""`merge`: one posterior from several that were fitted apart, without moving any data."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from posthoc_bhpeft.api import BayesianPeft
from posthoc_bhpeft.blocks import DEFAULT_RECOGNIZERS, Product, Recognizer, discover
from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.linalg import BlockOperator, OperatorSum, Solution, merge_terms
from posthoc_bhpeft.merging.checks import check_alike, check_common_start, check_prior
from posthoc_bhpeft.merging.double import converted
from posthoc_bhpeft.merging.product import System
from posthoc_bhpeft.posterior import Posterior, as_parameters, decompose_all, read_weights
from posthoc_bhpeft.prior import GaussianPrior


def common_prior(
    model: nn.Module,
    precision: float = 10.0,
    recognizers: Sequence[Recognizer] = DEFAULT_RECOGNIZERS,
) -> GaussianPrior:
    """A prior around a model's present weights: the start that parts to be merged share.

    It must hold the parts near enough to the start for their quadratic approximations to meet, and
    let them learn. `benchmarks/results/merging.md` has what the default does.

    Args:
        model: The common start; random, or better tuned on a few rows already.
        precision: Of every block, in inverse squared units of the weights.
        recognizers: Those that the parts will be fitted with.
    """
    blocks = discover(model, recognizers)
    return GaussianPrior.isotropic(blocks, precision, read_weights(model, blocks))


def merge(
    bayes: Sequence[BayesianPeft], *, prior: GaussianPrior, max_terms: int = 2
) -> BayesianPeft:
    """The posterior of all data, from posteriors that were each fitted on a part of them.

    ```python
    prior = common_prior(model)
    # In each place: train a copy of the model on loss + prior.penalty(model_k) / n_k, then
    bayes_k = bayesianize(model_k, loader_k, prior=prior)
    # and, with what came back,
    bayes = merge([bayes_1, bayes_2], prior=prior)
    ```

    The mean is solved for exactly, with every Kronecker term as it is (`merging.product` derives
    it); only then are terms merged. The penalty is no detail: without it, what each part moved in
    directions that its data do not see is added up over the parts. A prior that holds LoRA layers
    by their product is taken as it is around its mean.

    Args:
        bayes: Two or more, over the same blocks, trained from the same weights.
        prior: The one that all of them were fitted with; counted once.
        max_terms: Kronecker terms to keep in the curvature of each block; see `merge_terms`.

    Returns:
        A Bayesian model on a copy of the first one's model, at the merged mean. Its log likelihood
        is the sum of the parts' quadratic approximations; see `System.log_likelihood_change`. It
        has no rule for review: those of the parts promise nothing about it.

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
    around = prior.linearized_at(prior.mean)
    systems = [System.of(block, posteriors, around) for block in first.blocks]
    solutions = {system.block.name: system.solve() for system in systems}
    model = copy.deepcopy(first.model)
    place(model, systems, solutions)
    mean = read_weights(model, first.blocks)
    products = shared_products(posteriors)
    curvature, errors = summed_curvature(posteriors, products, max_terms)
    prior = replace(prior, blocks=first.blocks).linearized_at(mean)
    merged = Posterior(
        first.blocks,
        mean,
        prior,
        curvature,
        decompose_all(prior, {block.name: curvature[block.name] for block in first.blocks}),
        sum(p.log_likelihood for p in posteriors)
        + sum(system.log_likelihood_change(mean[system.block.name]) for system in systems),
        sum(p.n_rows for p in posteriors),
        first.posterior.n_outputs,
        products,
    )
    # A part's rule promises something about that part alone; nobody has audited the whole.
    return replace(
        first,
        model=model,
        posterior=merged,
        reason=describe(posteriors, solutions, errors),
        review_rule=None,
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


def shared_products(posteriors: Sequence[Posterior]) -> tuple[Product, ...]:
    """LoRA layers of whose product every part has a curvature."""
    names = [{product.name for product in posterior.products} for posterior in posteriors]
    common = set.intersection(*names)
    return tuple(product for product in posteriors[0].products if product.name in common)


def summed_curvature(
    posteriors: Sequence[Posterior], products: Sequence[Product], max_terms: int
) -> tuple[dict[str, BlockOperator], dict[str, float]]:
    """`sum_k H_k` of every block and product in at most so many terms, and the errors of that."""
    mean = posteriors[0].mean
    like = {**mean, **{product.name: mean[product.up.name] for product in products}}
    curvature: dict[str, BlockOperator] = {}
    errors = {}
    for name, tensor in like.items():
        terms = OperatorSum(tuple(converted(p.curvature[name], tensor) for p in posteriors))
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
