"""What a prior rule is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from posthoc_bhpeft.batches import Loader
from posthoc_bhpeft.evidence import LaplaceEvidence
from posthoc_bhpeft.likelihood import Gaussian, Likelihood, Tokens
from posthoc_bhpeft.predictive.gradients import LabelGradients
from posthoc_bhpeft.predictive.links import Link
from posthoc_bhpeft.predictive.spectrum import CovarianceSpectrum
from posthoc_bhpeft.shards import some_batches


@dataclass(frozen=True)
class LaplaceFit:
    """What a prior rule may look at.

    Attributes:
        evidence: Eigenvalues, movements and log likelihood.
        likelihood: Of the labels given outputs.
        spectra: Covariance spectra of batches, as a link needs them; one prediction's cost.
        gradients: Gradients of the label log-odds of batches, of at most so many yes-or-no answers
            of each row; a backward pass an answer.
        training: The loader the curvature was fitted on; where several processes share the data,
            this one's `Shard`, and spectra and gradients come from all.
    """

    evidence: LaplaceEvidence
    likelihood: Likelihood
    spectra: Callable[[Loader, Link], Iterable[CovarianceSpectrum]]
    gradients: Callable[[Loader, int], Iterable[LabelGradients]]
    training: Loader


@dataclass(frozen=True)
class PriorChoice:
    """A prior precision for each block.

    Attributes:
        precision: By block name.
        reason: One or two sentences for a person.
        noise_variance: Of a Gaussian likelihood, where it was to be learnt.
        link: For predictions, where the rule found one and nobody asked for another.
    """

    precision: Mapping[str, float]
    reason: str
    noise_variance: float | None = None
    link: Link | None = None


def without_log_odds(likelihood: Likelihood) -> bool:
    """Whether no row has log-odds that a rule could judge by one backward pass: fall back.

    In regression there are none, and with a label at every position each would take a pass.
    """
    return isinstance(likelihood, Gaussian | Tokens)


class PriorRule(Protocol):
    """Chooses a prior precision for every block."""

    def choose(self, fit: LaplaceFit) -> PriorChoice:
        """Choose."""
        ...


def spread(loader: Loader, wanted: int, n_rows: int) -> Loader:
    """Batches of a loader with about `wanted` of its `n_rows` rows, evenly spread over it.

    Of one process's part, so many that all parts together have about `wanted`.
    """
    return some_batches(loader, range(0, len(loader), stride(wanted, n_rows)))


def stride(wanted: int, n_rows: int) -> int:
    """One batch of so many has about `wanted` of `n_rows` rows; the same in every process."""
    return max(round(n_rows / wanted), 1)
