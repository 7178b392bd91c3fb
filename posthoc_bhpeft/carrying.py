"""A prior that an earlier fit left: does it fit this one, and what it says, in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from posthoc_bhpeft.blocks import Block
from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.likelihood import Gaussian, Likelihood
from posthoc_bhpeft.posterior import Posterior
from posthoc_bhpeft.prior import GaussianPrior
from posthoc_bhpeft.selection import Chained, PriorRule


def split_prior(
    prior: PriorRule | GaussianPrior,
) -> tuple[GaussianPrior | None, PriorRule | None]:
    """The earlier posterior, if any, and the rule that is still to choose, if any."""
    if isinstance(prior, GaussianPrior):
        return prior, None
    return (prior.prior, prior.floor) if isinstance(prior, Chained) else (None, prior)


def chained(posterior: Posterior, earlier: GaussianPrior | None) -> Posterior:
    """A posterior under an earlier one as its prior; unchanged where there is none."""
    if earlier is None:
        return posterior
    return posterior.with_prior(replace(earlier, blocks=posterior.blocks))


def check_carried(prior: GaussianPrior, blocks: Sequence[Block], likelihood: Likelihood) -> None:
    """Raise unless a prior and a likelihood can be taken as they are.

    Raises:
        ConfigError: If the prior is about other blocks, or a noise variance is still to be learnt.
    """
    prior.check_blocks(blocks)
    if isinstance(likelihood, Gaussian) and likelihood.noise_variance is None:
        raise ConfigError(
            "prior= carries curvature at a known noise variance, and Gaussian() would learn "
            "another. Pass the one of the earlier fit: likelihood=bayes.likelihood."
        )


def describe_carried(posterior: Posterior) -> str:
    """Where a chained posterior's prior comes from, and how far the data moved it."""
    prior = posterior.prior
    if not prior.carried:
        return "Prior as given, isotropic in each block."
    reason = (
        f"Prior carried over from an earlier posterior, curvature in {len(prior.carried)} of "
        f"{len(posterior.blocks)} blocks. The weights have moved "
        f"{0.5 * posterior.squared_movement():.1f} nats away from its mean."
    )
    if prior.merge_errors:
        worst = max(prior.merge_errors, key=prior.merge_errors.__getitem__)
        reason += (
            f" Earlier terms were merged with a relative error of up to "
            f"{prior.merge_errors[worst]:.2g} ({worst})."
        )
    return reason
