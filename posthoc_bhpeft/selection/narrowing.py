"""Regression: a posterior no wider than training rows with tokens hidden see a reason for.

The evidence gives the noise what training residuals leave and the weights the rest. Where a network
was not trained to its mode there is little rest, and a posterior on top of the noise only makes
intervals wider than they need to be: on rows with tokens hidden, as on new ones, that shows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from posthoc_bhpeft.likelihood import Gaussian
from posthoc_bhpeft.predictive.links import LogOdds
from posthoc_bhpeft.predictive.spectrum import CovarianceSpectrum
from posthoc_bhpeft.selection.adjustment import sentence
from posthoc_bhpeft.selection.heldout import summed_losses
from posthoc_bhpeft.selection.hidden import told
from posthoc_bhpeft.selection.rule import PriorChoice

TIMES = tuple(4.0**k for k in range(5))
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
        The choice, its precision multiplied by one of `TIMES`.
    """
    given = next(iter(choice.precision.values()))
    candidates = [given * times for times in TIMES]
    total, n_rows = summed_losses(likelihood, LogOdds(), spectra, candidates, choice.noise_variance)
    means, best = total / n_rows, int(total.argmin())
    wanted = f"{TIMES[best]:.0f} times that precision" if best else None
    why = sentence(told(n_rows, share), wanted, float(means[0]), float(means[best]))
    precision = {name: value * TIMES[best] for name, value in choice.precision.items()}
    return replace(choice, precision=precision, reason=f"{choice.reason} {why}")
