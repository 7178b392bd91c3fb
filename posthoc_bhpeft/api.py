"""`bayesianize`: the only place where curvature and posterior meet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn

from posthoc_bhpeft.batches import Loader
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
from posthoc_bhpeft.curvature import (
    Curvature,
    FittedCurvature,
    Keeper,
    KroneckerGGN,
    Resume,
    check_repeatable,
    fit_curvature,
    sampled,
)
from posthoc_bhpeft.curvature.resuming import Probe
from posthoc_bhpeft.digests import digest_of
from posthoc_bhpeft.likelihood import Categorical, Gaussian, Likelihood
from posthoc_bhpeft.matching import check_same_everywhere, numbers_set, whole_digest
from posthoc_bhpeft.memory import explaining_memory
from posthoc_bhpeft.posterior import Posterior, decompose_all, read_weights
from posthoc_bhpeft.predictive import Linearized, Link, LogOdds, Tangent, Tempered
from posthoc_bhpeft.prior import GaussianPrior
from posthoc_bhpeft.progress import track
from posthoc_bhpeft.selection import HeldOut, LaplaceFit, LeaveOneOut, Passes, PriorRule
from posthoc_bhpeft.shards import own_part, processes_of
from posthoc_bhpeft.size import check_memory

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
    resume: Resume | None = None,
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
            a pair `(inputs, labels)`. Read for the labels, for the fit, and for the prior. Where
            `accelerate`, a `DistributedSampler` or `Shard` divides it among processes, each calls
            this with its part, and all get the posterior of the whole.
        likelihood: `Categorical()`, `Gaussian()` for regression, `Bernoulli()` for multi-label,
            `Tokens()` for labels at every position, `Tokens(shift=True)` for the next token.
        curvature: The estimator of the GGN.
        prior: The rule that chooses the precision of the prior, or the prior itself: what an
            earlier fit learnt (`bayes.as_prior()`), for a posterior chained to that one.
        predictive: How predictions are made, unless asked otherwise; by default `Linearized()`,
            with labels at every position `Tangent()`, at the temperature that the rule found.
        recognizers: Find the blocks of each layer; add your own for other layers.
        engine: Makes the per-sample gradients; hooks by default.
        products: Keep the curvature of LoRA layers' `B A` too, for `as_prior(products=True)`.
        generator: Randomness of the curvature's random signs; seeded with 0 by default.
        resume: Keep partial sums in a folder, so that a fit that is killed goes on: `Resume(...)`.
        progress: Show a progress bar.

    Returns:
        The Bayesian model.

    Raises:
        ConfigError: If an argument is of the wrong type.
        ModelError: If the model has nothing trainable, hidden adapters, dead blocks, or NaN.
        DataError: If the loader is empty, read-once, or has missing or wrong labels.
        MemoryLimitError: If the curvature cannot fit into memory, before any pass.
        CheckpointError: If the folder of `resume` is of another fit.
        ProcessError: If another process failed.
    """
    earlier, rule = split_prior(prior)
    usual = predictive or usual_predictive(likelihood)
    data, rule = own_part(loader), with_own_part(rule)
    processes = processes_of(data)
    with processes.together():
        roles = {"likelihood": likelihood, "curvature": curvature, "predictive": usual}
        check_arguments(model, **roles, **({} if rule is None else {"prior": rule}))
        blocks = discover(model, recognizers)
        check_carried(earlier, blocks, likelihood)
        pairs = chosen_products(blocks, earlier, products)
        check_memory(blocks, curvature, model, pairs)
    check_same_everywhere(model, processes)
    look = check_data(model, data, likelihood)
    n_rows = look.n_rows
    if isinstance(rule, HeldOut):
        check_data(model, rule.loader, likelihood, "HeldOut(loader)")
    chosen = sampled(curvature, data, n_rows)
    signs = processes.stream(generator or torch.Generator().manual_seed(0))
    settings = {
        "curvature": repr(curvature),
        "likelihood": repr(likelihood),
        "products": digest_of([pair.name for pair in pairs]),
        "random signs (the seed)": digest_of(signs.get_state()),
        "blocks": digest_of([(block.name, block.shape) for block in blocks]),
    }
    with (
        explaining_memory(),
        keeping(resume, loader, chosen, model, settings, look.probe) as keeper,
    ):
        fitted = fit_curvature(
            model,
            blocks,
            chosen,
            likelihood,
            curvature,
            engine=engine,
            products=pairs,
            generator=signs,
            keeper=keeper,
            progress=lambda batches: track(
                batches, "Curvature", len(chosen), progress and processes.first
            ),
        )
        fitted = fitted if chosen is data else fitted.scaled_to(n_rows)
        posterior = unit_posterior(model, blocks, pairs, fitted, start_of(earlier, rule, blocks))
        if rule is None:
            reason = describe_carried(posterior)
            return BayesianPeft(
                model, posterior, likelihood, usual, curvature, reason, processes=processes
            )
        learns_noise = isinstance(likelihood, Gaussian) and likelihood.noise_variance is None
        evidence = replace(posterior.evidence(), learns_noise=learns_noise)
        passes = Passes(model, blocks, posterior.bases, likelihood, engine, progress)
        fit = LaplaceFit(evidence, likelihood, passes.spectra, passes.gradients, data)
        with passes.opened:
            choice = processes.of_first(rule.choose(fit))
    posterior = posterior.with_prior(replace(posterior.prior, precision=choice.precision))
    if choice.noise_variance is not None:
        likelihood = Gaussian(choice.noise_variance)
        noisy = evidence.at_noise(choice.noise_variance)
        posterior = posterior.at_noise(choice.noise_variance, noisy.log_likelihood)
    reason = choice.reason if earlier is None else f"{describe_carried(posterior)} {choice.reason}"
    usual = predictive or usual_predictive(likelihood, choice.link)
    return BayesianPeft(model, posterior, likelihood, usual, curvature, reason, processes=processes)


def usual_predictive(likelihood: Likelihood, link: Link | None = None) -> Predictive:
    """The predictive where nobody asks for another, with the link that a prior rule found."""
    if not likelihood.positions:
        return Linearized(link or LogOdds())
    return Tangent(temperature=link.temperature) if isinstance(link, Tempered) else Tangent()


def with_own_part(rule: PriorRule | None) -> PriorRule | None:
    """A rule that looks at this process's part of its held-out rows."""
    return replace(rule, loader=own_part(rule.loader)) if isinstance(rule, HeldOut) else rule


@contextmanager
def keeping(
    resume: Resume | None,
    loader: Loader,
    chosen: Loader,
    model: nn.Module,
    settings: Mapping[str, str],
    probe: Probe,
) -> Iterator[Keeper | None]:
    """Where partial sums are kept during a fit, and removed once there is a posterior.

    Args:
        resume: Says where; `None` keeps none.
        loader: As the user gave it.
        chosen: The batches that the fit takes.
        model: Its numbers must be those of the fit that was killed.
        settings: And these, by a name for people.
        probe: And what it makes of the first batch.

    Yields:
        For `fit_curvature`.
    """
    if resume is None:
        yield None
        return
    processes = processes_of(chosen)
    with processes.together():
        check_repeatable(loader)
        same = {
            **settings,
            "weights": whole_digest(model),
            "scalings or epsilons": digest_of(numbers_set(model)),
            "number of batches": str(len(chosen)),
        }
        keeper = resume.open(same, processes, probe)
    yield keeper
    keeper.remove()


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
        decompose_all(prior, {block.name: curvature[block.name] for block in blocks}),
        fitted.log_likelihood,
        fitted.n_rows,
        fitted.n_outputs,
        products,
    )
