"""Prior rules: how the precision of the prior is chosen, and why, in words.

A rule is one dataclass with one method; write your own and pass it as `prior=`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from posthoc_bhpeft.batches import Loader
from posthoc_bhpeft.errors import ConfigError, DataError
from posthoc_bhpeft.evidence import (
    HIGHEST,
    BlockSpectrum,
    LaplaceEvidence,
    best_precision,
    best_visible_precision,
)
from posthoc_bhpeft.jackknife import guarded_precision, matched_precision
from posthoc_bhpeft.likelihood import Bernoulli, Gaussian, Likelihood
from posthoc_bhpeft.predictive.links import Link, LogOdds
from posthoc_bhpeft.predictive.spectrum import CovarianceSpectrum
from posthoc_bhpeft.prior import GaussianPrior


class Grouping(str, Enum):
    """Which blocks share one prior precision."""

    MODEL = "model"
    KIND = "kind"
    BLOCK = "block"

    def groups(self, spectra: Mapping[str, BlockSpectrum]) -> dict[str, list[str]]:
        """Names of blocks by group."""
        found: dict[str, list[str]] = {}
        for name, spectrum in spectra.items():
            key = {"model": "all", "kind": spectrum.kind.value, "block": name}[self.value]
            found.setdefault(key, []).append(name)
        return found


@dataclass(frozen=True)
class LaplaceFit:
    """What a prior rule may look at.

    Attributes:
        evidence: Eigenvalues, movements and log likelihood.
        likelihood: Of the labels given outputs.
        spectra: Covariance spectra of batches, as a link needs them; one prediction's cost.
        training: The loader the curvature was fitted on.
    """

    evidence: LaplaceEvidence
    likelihood: Likelihood
    spectra: Callable[[Loader, Link], Iterable[CovarianceSpectrum]]
    training: Loader


@dataclass(frozen=True)
class PriorChoice:
    """A prior precision for each block.

    Attributes:
        precision: By block name.
        reason: One or two sentences for a person.
        noise_variance: Of a Gaussian likelihood, where it was to be learnt.
    """

    precision: Mapping[str, float]
    reason: str
    noise_variance: float | None = None


class PriorRule(Protocol):
    """Chooses a prior precision for every block."""

    def choose(self, fit: LaplaceFit) -> PriorChoice:
        """Choose."""
        ...


@dataclass(frozen=True)
class FixedPrecision(PriorRule):
    """The same, given precision for every block.

    Args:
        value: In inverse squared units of the weights.
    """

    value: float

    def __post_init__(self) -> None:
        number = isinstance(self.value, (int, float)) and math.isfinite(self.value)
        if not number or self.value <= 0:
            raise ConfigError(
                f"FixedPrecision({self.value!r}): a precision is a finite number above 0."
            )

    def choose(self, fit: LaplaceFit) -> PriorChoice:
        """The given precision; the noise of a Gaussian likelihood is still learnt."""
        precision, noise = with_noise(
            fit.evidence, lambda evidence: dict.fromkeys(evidence.spectra, self.value)
        )
        return PriorChoice(precision, f"Prior precision {self.value:g}, as given.", noise)


@dataclass(frozen=True)
class MarginalLikelihood(PriorRule):
    """Maximise the Laplace evidence: needs no held-out data, and no search.

    It takes the weights for a mode under a zero-mean prior. Where the model is under-trained they
    are none, the precision comes out too low, and predictions too wide; the default rule does not
    use the evidence.

    Args:
        per: Which blocks share a precision.
    """

    per: Grouping = Grouping.MODEL

    def choose(self, fit: LaplaceFit) -> PriorChoice:
        """The precisions of highest evidence (and the noise variance, where learnt)."""
        precision, noise, evidence = search_groups(fit.evidence, self.per, best_precision)
        value = evidence.log_marginal_likelihood(precision)
        reason = (
            f"Prior precision by marginal likelihood, one a {self.per.value}: "
            f"{describe(precision, evidence, self.per)}. Log evidence {value:.1f} nats, "
            f"{sum(evidence.effective_parameters(precision).values()):.0f} effective parameters."
        )
        return PriorChoice(precision, reason, noise)


@dataclass(frozen=True)
class MatchedPrecision(PriorRule):
    """The default: a prior whose log-odds are as large as the network's, and no wider than safe.

    Two steps from one more pass over training rows; neither needs a held-out row:

    1. The *matched precision*, at which the prior predicts log-odds of the predicted class as large
       as those of the trained network (`jackknife.matched_precision`).
    2. The *jackknife guard*: the precision is raised as far as the training rows ask, each judged
       by the model without it (`jackknife.guarded_precision`). It can only move predictions
       towards those of the trained model; it is what keeps an accurate network from being made
       unsure of itself.

    In regression there are no log-odds, and `VisiblePrecision` is used.

    Args:
        max_rows: Use at most about so many rows, evenly spread over the training data.
    """

    max_rows: int = 2048

    def choose(self, fit: LaplaceFit) -> PriorChoice:
        """The matched precision, raised by the guard."""
        if isinstance(fit.likelihood, Gaussian):
            return VisiblePrecision().choose(fit)
        rows = spread(fit.training, self.max_rows, fit.evidence.n_rows)
        spectra = list(fit.spectra(rows, LogOdds()))
        matched = matched_precision(fit.likelihood, spectra)
        chosen = guarded_precision(fit.likelihood, spectra, matched)
        reason = (
            f"Prior precision {matched:.3g}, at which the prior's log-odds are as large as the "
            "network's on training rows."
        )
        if chosen > matched:
            reason += (
                f" Raised to {chosen:.3g}: training rows, each judged without itself, were "
                "predicted better by a surer model."
            )
        if chosen > 50 * matched:
            reason += (
                " That leaves the trained model's predictions nearly as they were, and epistemic "
                "uncertainty small; HeldOut(loader) can tell from held-out rows whether they are "
                "too sure."
            )
        return PriorChoice(dict.fromkeys(fit.evidence.spectra, chosen), reason)


@dataclass(frozen=True)
class VisiblePrecision(PriorRule):
    """The evidence's fixed point, counting only the weights that the data can see.

    `1 / d = sum_i s_i z_i^2 / sum_i s_i`, `s_i = l_i / (l_i + d)`: the prior variance is the mean
    square of the weights, each counted as far as the data determine it. It is MacKay's fixed point
    without the drift that gradient noise leaves in directions the data cannot see
    (`evidence.best_visible_precision`).

    Args:
        per: Which blocks share a precision.
    """

    per: Grouping = Grouping.MODEL

    def choose(self, fit: LaplaceFit) -> PriorChoice:
        """The precisions at the fixed point."""
        precision, noise, evidence = search_groups(fit.evidence, self.per, best_visible_precision)
        reason = (
            "Prior precision from the weights that the data can see, one a "
            f"{self.per.value}: {describe(precision, evidence, self.per)}; "
            f"{sum(evidence.effective_parameters(precision).values()):.0f} effective parameters."
        )
        return PriorChoice(precision, reason, noise)


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
        """The best candidate."""
        noise = None
        likelihood = fit.likelihood
        if fit.evidence.learns_noise:
            n_labels = fit.evidence.n_rows * fit.evidence.n_outputs
            noise = max(fit.evidence.squared_error / n_labels, 1e-12)
            likelihood = Gaussian(noise)
        candidates = (*sorted(self.candidates), HIGHEST)
        total = torch.zeros(len(candidates), dtype=torch.float64)
        n_rows = 0
        for spectrum in fit.spectra(self.loader, self.link):
            total += torch.stack(
                [
                    predictive_nll(likelihood, self.link, spectrum, d, noise or 1.0)
                    for d in candidates
                ]
            )
            n_rows += len(spectrum.labels)
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


@dataclass(frozen=True)
class Chained(PriorRule):
    """An earlier posterior as the prior, its isotropic floor chosen anew by a rule.

    The curvature that the prior carries is kept as it is. The floor is what decides how wide the
    posterior is where no data has been; it was chosen on the earlier data, and `floor` chooses it
    again on this.

    Args:
        prior: From `bayes.as_prior()`.
        floor: A rule that judges predictions. Rules of the evidence do not apply: they know of
            isotropic priors alone.

    Raises:
        ConfigError: If `floor` is a rule of the evidence.
    """

    prior: GaussianPrior
    floor: PriorRule = field(default_factory=MatchedPrecision)

    def __post_init__(self) -> None:
        if isinstance(self.floor, MarginalLikelihood | VisiblePrecision):
            raise ConfigError(
                f"Chained(floor={self.floor!r}): the evidence of a floor beside carried curvature "
                "is not worked out. Supported: MatchedPrecision(), HeldOut(loader), "
                "FixedPrecision(value), or the prior itself, prior=prior, which keeps its floor."
            )

    def choose(self, fit: LaplaceFit) -> PriorChoice:
        """The floor; `bayesianize` puts it under the carried curvature."""
        if isinstance(fit.likelihood, Gaussian) and isinstance(self.floor, MatchedPrecision):
            # In regression that rule falls back on the evidence.
            return PriorChoice(self.prior.precision, "Its floor is kept.")
        return self.floor.choose(fit)


def spread(loader: Loader, wanted: int, n_rows: int) -> list[Any]:
    """Batches of a loader with about `wanted` of its `n_rows` rows, evenly spread over it."""
    step = max(round(n_rows / wanted), 1)
    return list(itertools.islice(loader, 0, None, step))


def search_groups(
    evidence: LaplaceEvidence, per: Grouping, rule: Callable[[Sequence[BlockSpectrum]], float]
) -> tuple[dict[str, float], float | None, LaplaceEvidence]:
    """Precisions by a rule for each group, the learnt noise, and the evidence at that noise."""
    precision, noise = with_noise(evidence, lambda at_noise: by_group(at_noise, per, rule))
    return precision, noise, evidence if noise is None else evidence.at_noise(noise)


def by_group(
    evidence: LaplaceEvidence, per: Grouping, rule: Callable[[Sequence[BlockSpectrum]], float]
) -> dict[str, float]:
    """One precision a group, spread over its blocks."""
    precision = {}
    for names in per.groups(evidence.spectra).values():
        value = rule([evidence.spectra[name] for name in names])
        precision.update(dict.fromkeys(names, value))
    return precision


def with_noise(
    evidence: LaplaceEvidence, choose: Callable[[LaplaceEvidence], dict[str, float]]
) -> tuple[dict[str, float], float | None]:
    """Choose precisions, alternating with the noise variance where that is to be learnt.

    `s2 = |y - f|^2 / (N C - gamma)`, MacKay's fixed point.
    """
    if not evidence.learns_noise:
        return choose(evidence), None
    n = evidence.n_rows * evidence.n_outputs
    noise = max(evidence.squared_error / n, 1e-12)
    for _ in range(100):
        scaled = evidence.at_noise(noise)
        gamma = sum(scaled.effective_parameters(choose(scaled)).values())
        # With as many effective parameters as labels the fixed point runs away; half is the bound.
        updated = max(evidence.squared_error / max(n - gamma, 0.5 * n), 1e-12)
        converged = math.isclose(updated, noise, rel_tol=1e-9)
        noise = updated
        if converged:
            break
    return choose(evidence.at_noise(noise)), noise


def describe(precision: Mapping[str, float], evidence: LaplaceEvidence, per: Grouping) -> str:
    """The chosen precisions in a few words."""
    groups = per.groups(evidence.spectra)
    values = {group: precision[names[0]] for group, names in groups.items()}
    if per is Grouping.MODEL:
        return f"{values['all']:.3g}"
    if per is Grouping.KIND:
        return ", ".join(f"{group} {value:.3g}" for group, value in values.items())
    return f"{min(values.values()):.3g} to {max(values.values()):.3g}"


def predictive_nll(
    likelihood: Likelihood,
    link: Link,
    spectrum: CovarianceSpectrum,
    precision: float,
    learnt_noise: float = 1.0,
) -> Tensor:
    """Summed negative log likelihood of a batch's labels under the predictive, float64."""
    covariance = spectrum.at(precision, learnt_noise)
    outputs, labels = spectrum.outputs, spectrum.labels
    if isinstance(likelihood, Gaussian):
        return gaussian_nll(outputs, covariance, labels, likelihood.dispersion).sum().cpu()
    if isinstance(likelihood, Bernoulli):
        variance = covariance.diagonal(dim1=-2, dim2=-1)
        probabilities = link.sigmoid(outputs, variance).double().clamp(1e-12, 1 - 1e-12)
        targets = labels.double().reshape(probabilities.shape)
        return F.binary_cross_entropy(probabilities, targets, reduction="sum").cpu()
    probabilities = link.softmax(outputs, covariance).double().clamp_min(1e-12)
    return -probabilities.gather(1, labels.long()[:, None]).log().sum().cpu()


def gaussian_nll(outputs: Tensor, covariance: Tensor, labels: Tensor, noise: float) -> Tensor:
    """`-log N(y; f, V + s2 I)` of each row, `(N,)`, float64."""
    n_outputs = outputs.shape[-1]
    identity = torch.eye(n_outputs, dtype=torch.float64, device=outputs.device)
    normal = torch.distributions.MultivariateNormal(
        outputs.double(), covariance.double() + noise * identity
    )
    log_density: Tensor = normal.log_prob(labels.double().reshape(outputs.shape))
    return -log_density
