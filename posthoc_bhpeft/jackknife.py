r"""The jackknife guard: how wide a posterior may be, judged by its own training rows.

Training rows flatter a model, because it has seen their labels. To first order, one Newton step
that leaves row `n` out moves the log-odds `M_n` of its predicted class to

    M_n^(-n) = M_n - v_n (h_n - sigmoid(M_n)),   h_n = [y_n is the predicted class],

with `v_n` the posterior variance of `M_n` (the infinitesimal jackknife: Jaeckel 1972; Giordano et
al. 2019, https://arxiv.org/abs/1806.00550). Among precisions at or above a given one, the guard
takes the one whose predictive gives the left-out rows the lowest binary NLL. An over-trained model
has little left to show on rows it has learnt by heart, so there the guard is timid: it costs some
of the gain, never more than all of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from posthoc_bhpeft.likelihood import Bernoulli, Likelihood
from posthoc_bhpeft.predictive.links import LogOdds, confidence
from posthoc_bhpeft.predictive.spectrum import CovarianceSpectrum

STEPS_A_DECADE, DECADES = 8, 4


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


def guarded_precision(
    likelihood: Likelihood, spectra: Iterable[CovarianceSpectrum], precision: float
) -> float:
    """A precision, raised as far as training rows ask that are each judged without themselves.

    Args:
        likelihood: `Categorical()` or `Bernoulli()`.
        spectra: Of training batches.
        precision: The lowest that may be chosen; it also sets the size of the jackknife's step.

    Returns:
        The best of `precision` and larger ones, on a logarithmic grid over four decades.
    """
    candidates = [
        precision * 10 ** (k / STEPS_A_DECADE) for k in range(STEPS_A_DECADE * DECADES + 1)
    ]
    loss = torch.zeros(len(candidates), dtype=torch.float64)
    for spectrum in spectra:
        loss += left_out_nll(margins_of(likelihood, spectrum, candidates))
    return candidates[int(loss.argmin())]


def left_out_nll(margins: Margins) -> Tensor:
    """Binary NLL of the left-out rows, summed, at each candidate: `(D,)`."""
    fitted = margins.margin.sigmoid()
    left_out = margins.margin - margins.variances[0] * (margins.hit - fitted)
    predicted = confidence(left_out, margins.variances).clamp(1e-7, 1 - 1e-7)
    nll = -(margins.hit * predicted.log() + (1 - margins.hit) * (1 - predicted).log())
    return nll.sum(-1).cpu()


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
