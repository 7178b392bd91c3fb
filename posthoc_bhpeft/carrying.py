"""A prior that an earlier fit left: does it fit this one, and what it says, in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from posthoc_bhpeft.blocks import Block, Product, find_products
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


def start_of(
    earlier: GaussianPrior | None, rule: PriorRule | None, blocks: tuple[Block, ...]
) -> GaussianPrior:
    """The prior to decompose under: an earlier posterior, at floor 1 until a rule has chosen."""
    if earlier is None:
        return GaussianPrior.isotropic(blocks, 1.0)
    return replace(earlier if rule is None else earlier.with_floor(1.0), blocks=blocks)


def check_carried(
    prior: GaussianPrior | None, blocks: Sequence[Block], likelihood: Likelihood
) -> None:
    """Raise unless a prior and a likelihood can be taken as they are.

    Raises:
        ConfigError: If the prior is about other blocks, or a noise variance is still to be learnt.
    """
    if prior is None:
        return
    prior.check_blocks(blocks)
    if isinstance(likelihood, Gaussian) and likelihood.noise_variance is None:
        raise ConfigError(
            "prior= carries curvature at a known noise variance, and Gaussian() would learn "
            "another. Pass the one of the earlier fit: likelihood=bayes.likelihood."
        )


def chosen_products(
    blocks: Sequence[Block], prior: GaussianPrior | None, wanted: bool
) -> tuple[Product, ...]:
    """LoRA layers whose product gets a curvature: those that the prior holds, or all if wanted.

    Raises:
        ConfigError: If there are none, or the prior holds their factors apart.
    """
    if prior is not None and prior.products:
        return prior.products
    found = find_products(blocks) if wanted else ()
    if wanted and not found:
        raise ConfigError(
            f"products=True is about LoRA layers, and none of the {len(blocks)} trainable blocks "
            "has both of its factors among them. Leave it out."
        )
    carried = {} if prior is None else prior.carried
    apart = [b.name for product in found for b in product.factors if b.name in carried]
    if apart:
        raise ConfigError(
            f"prior= holds {apart[0]!r} apart from its other factor, and what it carries is not "
            "about their product. Take the prior from bayes.as_prior(products=True), or leave "
            "products=True out."
        )
    return found


def describe_carried(posterior: Posterior) -> str:
    """Where a chained posterior's prior comes from, and how far the data moved it."""
    prior = posterior.prior
    if not prior.carried:
        return "Prior as given, isotropic in each block."
    own = sum(block.name in prior.carried for block in posterior.blocks)
    by_product = f", {len(prior.products)} LoRA layers by product" if prior.products else ""
    reason = (
        f"Prior carried over from an earlier posterior, curvature in {own} of "
        f"{len(posterior.blocks)} blocks{by_product}. The weights have moved "
        f"{0.5 * posterior.squared_movement():.1f} nats away from its mean."
    )
    if prior.merge_errors:
        worst = max(prior.merge_errors, key=prior.merge_errors.__getitem__)
        reason += (
            f" Earlier terms were merged with a relative error of up to "
            f"{prior.merge_errors[worst]:.2g} ({worst})."
        )
    return reason
