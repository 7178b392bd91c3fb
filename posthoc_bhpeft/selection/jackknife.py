r"""How wide a posterior may be, judged by its own training rows: moment matching and a jackknife.

Training rows flatter a model, because it has seen their labels. To first order, one Newton step
that leaves row `n` out moves the log-odds `M_n` of its predicted class to

    M_n^(-n) = M_n - v_n (h_n - sigmoid(M_n)),   h_n = [y_n is the predicted class],

with `v_n` the posterior variance of `M_n` (the infinitesimal jackknife: Jaeckel 1972; Giordano et
al. 2019, https://arxiv.org/abs/1806.00550). Among precisions at or above a given one, the guard
takes the one whose predictive gives the left-out rows the lowest binary NLL, with Platt's (1999)
targets: `(n1 + 1) / (n1 + 2)` for the `n1` hits and `1 / (n0 + 2)` for the `n0` misses, so that a
few rows without a single error are no proof of certainty.

An over-trained model has little left to show on rows it has learnt by heart, so there the guard is
timid: it costs some of the gain, never more than all of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from posthoc_bhpeft.evidence import HIGHEST, LOWEST
from posthoc_bhpeft.likelihood import Bernoulli, Likelihood
from posthoc_bhpeft.predictive.links import LogOdds, confidence
from posthoc_bhpeft.predictive.spectrum import CovarianceSpectrum

# At a hundredth of the variance probabilities are the trained model's, within about 1 % of a
# log-odd; going on would only round the epistemic uncertainty, which still ranks rows, to zero.
STEPS_A_DECADE, DECADES = 8, 2


@dataclass(frozen=True)
class Margins:
    """Log-odds of predicted classes, and their variances at each candidate precision.

    Attributes:
        margin: `M`, `(R,)` for `R` rows (or rows times outputs, for independent answers).
        hit: `h`, `(R,)`: 1 where the label is the predicted class.
        variances: `v`, `(D, R)` for `D` candidate precisions.
    """

    margin: Tensor
    hit: Tensor
    variances: Tensor


@dataclass(frozen=True)
class LeftOut:
    """Sums over left-out rows at each of `D` candidates, misses and hits apart.

    Attributes:
        counts: `(2,)`, the numbers of misses and of hits.
        logs: `(2, 2, D)`: for misses and for hits, the sums of `log(1 - q)` and of `log q`.
    """

    counts: Tensor
    logs: Tensor

    def nll(self) -> Tensor:
        """Binary NLL with Platt's targets, summed, at each candidate: `(D,)`."""
        misses, hits = self.counts
        targets = torch.stack([1 / (misses + 2), (hits + 1) / (hits + 2)])
        weights = torch.stack([1 - targets, targets], -1)  # (2, 2): of log(1 - q) and log q
        return -(weights[:, :, None] * self.logs).sum((0, 1))


def guarded_precision(
    likelihood: Likelihood, spectra: Iterable[CovarianceSpectrum], precision: float
) -> float:
    """A precision, raised as far as training rows ask that are each judged without themselves.

    Args:
        likelihood: `Categorical()` or `Bernoulli()`.
        spectra: Of training batches.
        precision: The lowest that may be chosen; it also sets the size of the jackknife's step.

    Returns:
        The best of `precision` and larger ones, on a logarithmic grid over two decades.
    """
    steps = range(STEPS_A_DECADE * DECADES + 1)
    candidates = [precision * 10 ** (k / STEPS_A_DECADE) for k in steps]
    parts = [left_out(margins_of(likelihood, spectrum, candidates)) for spectrum in spectra]
    counts = torch.stack([part.counts for part in parts]).sum(0)
    logs = torch.stack([part.logs for part in parts]).sum(0)
    return candidates[int(LeftOut(counts, logs).nll().argmin())]


def left_out(margins: Margins) -> LeftOut:
    """Scores of one batch, each row judged one Newton step away from its own label."""
    fitted = margins.margin.sigmoid()
    moved = margins.margin - margins.variances[0] * (margins.hit - fitted)
    predicted = confidence(moved, margins.variances).clamp(1e-7, 1 - 1e-7)  # (D, R)
    logs = torch.stack([torch.log1p(-predicted), predicted.log()])  # (2, D, R)
    shares = torch.stack([1 - margins.hit, margins.hit])  # (2, R); soft labels count in part
    return LeftOut(shares.sum(-1).cpu(), torch.einsum("jdr,ir->ijd", logs, shares).cpu())


def matched_precision(likelihood: Likelihood, spectra: Iterable[CovarianceSpectrum]) -> float:
    """The precision at which the prior predicts log-odds as large as the network's.

    A prior `N(0, I / d)` over the linearised weights gives row `n` log-odds of variance
    `|J_n^T a_n|^2 / d`. Matched in the mean to the squared log-odds of the trained network,
    `d = sum_n |J_n^T a_n|^2 / sum_n M_n^2`. It uses no eigenvalue of the curvature, and must not be
    used unguarded: it takes large log-odds for a wide prior even where they are deserved.

    Args:
        likelihood: `Categorical()` or `Bernoulli()`.
        spectra: Of training batches.

    Returns:
        The precision, within `LOWEST` and `HIGHEST`.
    """
    squared_gradient = squared_margin = 0.0
    for spectrum in spectra:
        # With all eigenvalues at zero, the covariance at precision 1 is the prior's own.
        prior = replace(spectrum, centres=torch.zeros_like(spectrum.centres))
        found = margins_of(likelihood, prior, [1.0])
        squared_gradient += float(found.variances.sum())
        squared_margin += float(found.margin.square().sum())
    if squared_margin == 0:
        return HIGHEST
    return min(max(squared_gradient / squared_margin, LOWEST), HIGHEST)


def margins_of(
    likelihood: Likelihood, spectrum: CovarianceSpectrum, candidates: Iterable[float]
) -> Margins:
    """Margins of one batch: of the predicted class, or of each independent answer."""
    outputs, labels = spectrum.outputs, spectrum.labels
    if isinstance(likelihood, Bernoulli):
        answer = labels.reshape(outputs.shape).double()
        variances = [spectrum.at(d).diagonal(dim1=-2, dim2=-1).flatten() for d in candidates]
        hit = torch.where(outputs > 0, answer, 1 - answer)
        return Margins(
            outputs.abs().flatten().double(), hit.flatten(), torch.stack(variances).double()
        )
    variances = [LogOdds.variance(outputs, spectrum.at(d)) for d in candidates]
    hit = (outputs.argmax(-1) == labels).double()
    return Margins(LogOdds.margin(outputs).double(), hit, torch.stack(variances).double())
