"""`bayesianize`: the only place where curvature and posterior meet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import nn

from posthoc_bhpeft.batches import Loader, device_of
from posthoc_bhpeft.bayesian import BayesianPeft, Predictive
from posthoc_bhpeft.blocks import (
    DEFAULT_RECOGNIZERS,
    Block,
    Engine,
    Product,
    Recognizer,
    discover,
    observing,
)
from posthoc_bhpeft.carrying import (
    check_carried,
    chosen_products,
    describe_carried,
    split_prior,
    start_of,
)
from posthoc_bhpeft.checks import check_arguments, check_data
from posthoc_bhpeft.curvature import Curvature, FittedCurvature, KroneckerGGN, fit_curvature
from posthoc_bhpeft.likelihood import Categorical, Gaussian, Likelihood
from posthoc_bhpeft.memory import check_memory, explaining_memory
from posthoc_bhpeft.posterior import Posterior, decompose, read_weights
from posthoc_bhpeft.predictive import Linearized, Link, LogOdds
from posthoc_bhpeft.predictive.gradients import LabelGradients, label_gradients
from posthoc_bhpeft.predictive.spectrum import CovarianceSpectrum, covariance_spectra
from posthoc_bhpeft.prior import GaussianPrior
from posthoc_bhpeft.progress import track
from posthoc_bhpeft.selection import HeldOut, LaplaceFit, LeaveOneOut, PriorRule

__all__ = ["BayesianPeft", "Predictive", "bayesianize"]


def bayesianize(
    model: nn.Module,
    loader: Loader,
    *,
    likelihood: Likelihood = Categorical(),
    curvature: Curvature = KroneckerGGN(),
    prior: PriorRule | GaussianPrior = LeaveOneOut(),
    predictive: Predictive | None = None,
    recognizers: Sequence[Recognizer] = DEFAULT_RECOGNIZERS,
    engine: Engine = observing,
    products: bool = False,
    generator: torch.Generator | None = None,
    progress: bool = True,
) -> BayesianPeft:
    """Fit a Laplace posterior over everything trainable in a fine-tuned model.

    ```python
    bayes = bayesianize(model, train_loader)
    prediction = bayes.predict(batch)
    prediction.probabilities, prediction.epistemic
    ```

    Args:
        model: A fine-tuned model, on the device to work on. It is not changed.
        loader: The training data: a `DataLoader` or list of batches, each a dict with `labels` or
            a pair `(inputs, labels)`. Read for the labels, for the fit, and for the prior.
        likelihood: `Categorical()`, `Gaussian()` for regression, `Bernoulli()` for multi-label.
        curvature: The estimator of the GGN.
        prior: The rule that chooses the precision of the prior, or the prior itself: what an
            earlier fit learnt (`bayes.as_prior()`), for a posterior chained to that one.
        predictive: How predictions are made, unless asked otherwise; by default `Linearized()` with
            the temperature that the rule found.
        recognizers: Find the blocks of each layer; add your own for other layers.
        engine: Makes the per-sample gradients; hooks by default.
        products: Keep the curvature of LoRA layers' `B A` too, for `as_prior(products=True)`.
        generator: Randomness of the curvature's random signs; seeded with 0 by default.
        progress: Show a progress bar.

    Returns:
        The Bayesian model.

    Raises:
        ConfigError: If an argument is of the wrong type.
        ModelError: If the model has nothing trainable, hidden adapters, dead blocks, or NaN.
        DataError: If the loader is empty, read-once, or has missing or wrong labels.
        MemoryLimitError: If the curvature cannot fit into memory, before any pass.
    """
    earlier, rule = split_prior(prior)
    usual = predictive or Linearized()
    roles = {
        "likelihood": likelihood,
        "curvature": curvature,
        "predictive": usual,
    }
    check_arguments(model, **roles, **({} if rule is None else {"prior": rule}))
    blocks = discover(model, recognizers)
    check_carried(earlier, blocks, likelihood)
    pairs = chosen_products(blocks, earlier, products)
    check_memory(blocks, curvature, device_of(model), pairs)
    check_data(model, loader, likelihood)
    if isinstance(rule, HeldOut):
        check_data(model, rule.loader, likelihood, "HeldOut(loader)")
    generator = generator or torch.Generator().manual_seed(0)
    with explaining_memory():
        fitted = fit_curvature(
            model,
            blocks,
            loader,
            likelihood,
            curvature,
            engine=engine,
            products=pairs,
            generator=generator,
            progress=lambda batches: track(batches, "Curvature", len(loader), progress),
        )

        def spectra(batches: Loader, link: Link) -> Iterable[CovarianceSpectrum]:
            shown = track(batches, "Prior", len(batches), progress)
            return covariance_spectra(
                model, blocks, posterior.bases, likelihood, shown, link=link, engine=engine
            )

        def gradients(batches: Loader) -> Iterable[LabelGradients]:
            shown = track(batches, "Prior", len(batches), progress)
            return label_gradients(model, blocks, posterior.bases, likelihood, shown, engine=engine)

        start = start_of(earlier, rule, blocks)
        posterior = unit_posterior(model, blocks, pairs, fitted, start)
        if rule is None:
            reason = describe_carried(posterior)
            return BayesianPeft(model, posterior, likelihood, usual, curvature, reason)
        learns_noise = isinstance(likelihood, Gaussian) and likelihood.noise_variance is None
        evidence = replace(posterior.evidence(), learns_noise=learns_noise)
        choice = rule.choose(LaplaceFit(evidence, likelihood, spectra, gradients, loader))
    posterior = posterior.with_prior(replace(posterior.prior, precision=choice.precision))
    if choice.noise_variance is not None:
        likelihood = Gaussian(choice.noise_variance)
        noisy = evidence.at_noise(choice.noise_variance)
        posterior = posterior.at_noise(choice.noise_variance, noisy.log_likelihood)
    reason = choice.reason if earlier is None else f"{describe_carried(posterior)} {choice.reason}"
    predictive = predictive or Linearized(choice.link or LogOdds())
    return BayesianPeft(model, posterior, likelihood, predictive, curvature, reason)


def unit_posterior(
    model: nn.Module,
    blocks: tuple[Block, ...],
    products: tuple[Product, ...],
    fitted: FittedCurvature,
    prior: GaussianPrior,
) -> Posterior:
    """The posterior of a fit, under a prior whose precision may still be chosen."""
    weights, curvature = read_weights(model, blocks), fitted.operators
    prior = prior.linearized_at(weights)
    return Posterior(
        blocks,
        weights,
        prior,
        curvature,
        {block.name: decompose(prior, block.name, curvature[block.name]) for block in blocks},
        fitted.log_likelihood,
        fitted.n_rows,
        fitted.n_outputs,
        products,
    )
