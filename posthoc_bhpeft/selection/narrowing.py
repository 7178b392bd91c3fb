"""Regression: a posterior no wider than training rows with tokens hidden see a reason for.

The evidence gives the noise what training residuals leave and the weights the rest. Where a network
was not trained to its mode there is little rest, and a posterior on top of the noise only makes
intervals wider than they need to be: on rows with tokens hidden, as on new ones, that shows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from posthoc_bhpeft.likelihood import Gaussian
from posthoc_bhpeft.predictive.spectrum import CovarianceSpectrum
from posthoc_bhpeft.selection.heldout import gaussian_nll
from posthoc_bhpeft.selection.rule import PriorChoice

NARROWER = tuple(4.0**k for k in range(5))
"""Precisions tried, in units of the one given; at the last, intervals are the trained network's."""


def narrowed(
    choice: PriorChoice,
    likelihood: Gaussian,
    spectra: Iterable[CovarianceSpectrum],
    share: float,
) -> PriorChoice:
    """The chosen precision or a higher one: the lowest NLL on rows with tokens hidden.

    Args:
        choice: One precision for all blocks; and the noise, where it was to be learnt.
        likelihood: Of the targets, with their noise where it was not.
        spectra: Of training rows with tokens hidden, all of them by the same precision.
        share: Of the tokens that is hidden.

    Returns:
        The choice, its precision multiplied by one of `NARROWER`.
    """
    given = next(iter(choice.precision.values()))
    losses = torch.cat(
        [
            torch.stack(
                [
                    losses_at(spectrum, given * width, likelihood, choice.noise_variance).cpu()
                    for width in NARROWER
                ]
            )
            for spectrum in spectra
        ],
        dim=-1,
    )
    means = losses.mean(-1)
    best = int(means.argmin())
    judged = f"{losses.shape[-1]} training rows with {share:.0%} of their tokens hidden"
    if best == 0:
        why = f"{judged} ask for nothing else (NLL {means[0]:.3f})."
    else:
        why = (
            f"{judged} ask for {NARROWER[best]:.0f} times that precision "
            f"(NLL {means[0]:.3f} without, {means[best]:.3f} so)."
        )
    precision = {name: value * NARROWER[best] for name, value in choice.precision.items()}
    return replace(choice, precision=precision, reason=f"{choice.reason} {why}")


def losses_at(
    spectrum: CovarianceSpectrum, precision: float, likelihood: Gaussian, learnt: float | None
) -> Tensor:
    """NLL of a batch's targets, `(N,)`, in nats."""
    noise = likelihood.dispersion if learnt is None else learnt
    # Where the noise is learnt, the curvature was summed at a noise of 1.
    covariance = spectrum.at(precision, 1.0 if learnt is None else learnt)
    return gaussian_nll(spectrum.outputs, covariance, spectrum.labels, noise)
