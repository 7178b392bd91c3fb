"""A precision judged on held-out rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from posthoc_bhpeft.batches import Loader
from posthoc_bhpeft.errors import DataError
from posthoc_bhpeft.evidence import HIGHEST
from posthoc_bhpeft.likelihood import Bernoulli, Gaussian, Likelihood
from posthoc_bhpeft.predictive.links import Link, LogOdds
from posthoc_bhpeft.predictive.spectrum import CovarianceSpectrum
from posthoc_bhpeft.selection.rule import LaplaceFit, PriorChoice, PriorRule


@dataclass(frozen=True)
class HeldOut(PriorRule):
    """The single precision with the lowest negative log likelihood on held-out rows.

    One pass over the held-out rows serves every candidate (see `CovarianceSpectrum`). The highest
    candidate is the trained model itself, so on these rows the result is never worse.

    Args:
        loader: Held-out labelled batches; not the training data.
        link: The link that predictions will be made with.
        candidates: Precisions to try; a logarithmic grid by default.
    """

    loader: Loader = field(repr=False)
    link: Link = field(default_factory=LogOdds)
    candidates: Sequence[float] = tuple(10 ** (k / 4) for k in range(-16, 33))

    def choose(self, fit: LaplaceFit) -> PriorChoice:
        """The best candidate.

        Raises:
            ConfigError: With a label at every position of a text.
            DataError: If no row has a label.
        """
        if fit.likelihood.positions:
            # Refuses, and says what to take instead.
            fit.likelihood.contrasts(fit.evidence.n_outputs)
        noise = None
        if fit.evidence.learns_noise:
            n_labels = fit.evidence.n_rows * fit.evidence.n_outputs
            noise = max(fit.evidence.squared_error / n_labels, 1e-12)
        candidates = (*sorted(self.candidates), HIGHEST)
        spectra = fit.spectra(self.loader, self.link)
        total, n_rows = summed_losses(fit.likelihood, self.link, spectra, candidates, noise)
        if n_rows == 0:
            raise DataError("HeldOut: the loader has no labelled held-out row. Pass labelled rows.")
        best = int(total.argmin())
        chosen, plain = float(total[best]) / n_rows, float(total[-1]) / n_rows
        reason = (
            f"Prior precision {candidates[best]:.3g}, of lowest NLL on {n_rows} held-out rows: "
            f"{chosen:.4f} nats a row against {plain:.4f} for the trained model alone."
        )
        precision = dict.fromkeys(fit.evidence.spectra, candidates[best])
        return PriorChoice(precision, reason, noise)


def summed_losses(
    likelihood: Likelihood,
    link: Link,
    spectra: Iterable[CovarianceSpectrum],
    candidates: Sequence[float],
    learnt_noise: float | None = None,
) -> tuple[Tensor, int]:
    """NLL at each precision `(D,)`, summed over all rows in nats and float64, and how many rows."""
    total, n_rows = torch.zeros(len(candidates), dtype=torch.float64), 0
    for spectrum in spectra:
        losses = [losses_at(likelihood, link, spectrum, d, learnt_noise) for d in candidates]
        total += torch.stack(losses).sum(-1).cpu()
        n_rows += len(spectrum.labels)
    return total, n_rows


def losses_at(
    likelihood: Likelihood,
    link: Link,
    spectrum: CovarianceSpectrum,
    precision: float,
    learnt_noise: float | None = None,
) -> Tensor:
    """NLL in nats of each row of a batch under the predictive, `(N,)`, float64.

    Args:
        likelihood: Of the labels.
        link: From Gaussian outputs to probabilities.
        spectrum: Of the batch.
        precision: Of the prior.
        learnt_noise: Variance of a Gaussian likelihood that is to learn it.
    """
    noise = 1.0
    if learnt_noise is not None:
        # The curvature was summed at a noise of 1.
        likelihood, noise = Gaussian(learnt_noise), learnt_noise
    covariance = spectrum.at(precision, noise)
    return predictive_losses(likelihood, link, spectrum.outputs, covariance, spectrum.labels)


def predictive_losses(
    likelihood: Likelihood, link: Link, outputs: Tensor, covariance: Tensor, labels: Tensor
) -> Tensor:
    """NLL in nats of each row's label under `N(outputs, covariance)`, `(N,)`, float64."""
    if isinstance(likelihood, Gaussian):
        return gaussian_nll(outputs, covariance, labels, likelihood.dispersion)
    if isinstance(likelihood, Bernoulli):
        variance = covariance.diagonal(dim1=-2, dim2=-1)
        probabilities = link.sigmoid(outputs, variance).double().clamp(1e-12, 1 - 1e-12)
        targets = labels.double().reshape(probabilities.shape)
        return F.binary_cross_entropy(probabilities, targets, reduction="none").sum(-1)
    probabilities = link.softmax(outputs, covariance).double().clamp_min(1e-12)
    return -probabilities.gather(1, labels.long()[:, None]).log().squeeze(1)


def gaussian_nll(outputs: Tensor, covariance: Tensor, labels: Tensor, noise: float) -> Tensor:
    """`-log N(y; f, V + s2 I)` of each row, `(N,)`, float64."""
    n_outputs = outputs.shape[-1]
    identity = torch.eye(n_outputs, dtype=torch.float64, device=outputs.device)
    normal = torch.distributions.MultivariateNormal(
        outputs.double(), covariance.double() + noise * identity
    )
    log_density: Tensor = normal.log_prob(labels.double().reshape(outputs.shape))
    return -log_density
