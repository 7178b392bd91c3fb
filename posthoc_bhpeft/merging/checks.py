"""Can posteriors be merged? Their weights, labels, models, priors and starts, compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from posthoc_bhpeft.api import BayesianPeft
from posthoc_bhpeft.blocks import Block, Kind
from posthoc_bhpeft.errors import CheckpointError, ConfigError, ModelError
from posthoc_bhpeft.matching import check_frozen, frozen_samples
from posthoc_bhpeft.merging.double import double_like, in_double
from posthoc_bhpeft.posterior import Posterior
from posthoc_bhpeft.prior import GaussianPrior

SAME = 1e-5
"""Relative difference up to which two priors are one: the rounding of single precision."""
RELATED = 0.3
"""Cosine below which two adapters have no start in common; see `check_common_start`."""


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
    # What a prior about products says of their factors depends on where it is looked at from.
    both = [one.linearized_at(one.mean) for one in (posterior.prior, prior)]
    for block in posterior.blocks:
        like = double_like(posterior.mean[block.name])
        own, common = (in_double(p, block, like) for p in both)
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
                "copy of one model, random or tuned on some rows, and hold it there: "
                "prior=common_prior(model)."
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
