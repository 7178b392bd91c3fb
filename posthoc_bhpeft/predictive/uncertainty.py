"""Total, aleatoric and epistemic uncertainty of each row, in nats, for every likelihood."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from posthoc_bhpeft.likelihood import Bernoulli, Gaussian, Likelihood
from posthoc_bhpeft.predictive.links import Link, MonteCarlo, binary_entropy, entropy
from posthoc_bhpeft.predictive.mixture import Mixture
from posthoc_bhpeft.predictive.prediction import Prediction


def predict_gaussian_outputs(
    likelihood: Likelihood, outputs: Tensor, covariance: Tensor, link: Link
) -> Prediction:
    """Predictions from outputs `N(f, V)`.

    The epistemic part in classification is the mutual information between label and weights, by
    the link's own `information`; the total is the entropy of the link's probabilities, and the
    aleatoric part is what is left. In regression all three are differential entropies.

    Args:
        likelihood: Of the labels given outputs.
        outputs: `f`, `(N, C)`.
        covariance: `V`, `(N, C, C)`.
        link: From Gaussian logits to probabilities; not used in regression.

    Returns:
        The predictions, with `covariance` inside.
    """
    if isinstance(likelihood, Gaussian):
        return gaussian_prediction(outputs, covariance, likelihood.dispersion)
    if isinstance(likelihood, Bernoulli):
        variance = covariance.diagonal(dim1=-2, dim2=-1)
        draws = MonteCarlo(256).draw(outputs, torch.diag_embed(variance)).sigmoid()
        information = binary_entropy(draws.mean(0)) - binary_entropy(draws).mean(0)
        return predict_answers(outputs, link.sigmoid(outputs, variance), covariance, information)
    probabilities = link.softmax(outputs, covariance)
    total, information = entropy(probabilities), link.information(outputs, covariance)
    epistemic = torch.minimum(information.clamp_min(0), total)
    return Prediction(outputs, probabilities, covariance, total, total - epistemic, epistemic)


def predict_answers(
    outputs: Tensor, probabilities: Tensor, covariance: Tensor | None, information: Tensor
) -> Prediction:
    """Predictions of independent answers, whose entropies add up to those of a row.

    Args:
        outputs: `(N, C)`.
        probabilities: `(N, C)`, of a yes.
        covariance: `(N, C, C)`, or `None`.
        information: `(N, C)`, what the weights know about each answer, in nats.
    """
    totals = binary_entropy(probabilities)
    each = torch.minimum(information.clamp_min(0), totals)
    total, epistemic = totals.sum(-1), each.sum(-1)
    return Prediction(
        outputs,
        probabilities,
        covariance,
        total,
        total - epistemic,
        epistemic,
        multilabel=True,
        answer_epistemic=each,
    )


def gaussian_prediction(outputs: Tensor, covariance: Tensor, noise_variance: float) -> Prediction:
    """Regression: `y ~ N(f, V + s2 I)`, entropies `1/2 log det(2 pi e (.))`."""
    n_outputs = outputs.shape[-1]
    identity = torch.eye(n_outputs, dtype=torch.float64, device=outputs.device)
    # log det(V / s2 + I): the information that the label carries about the weights, doubled.
    information = 0.5 * torch.logdet(covariance.double() / noise_variance + identity)
    noise_entropy = 0.5 * n_outputs * math.log(2 * math.pi * math.e * noise_variance)
    epistemic = information.to(outputs)
    aleatoric = torch.full_like(epistemic, noise_entropy)
    return Prediction(outputs, None, covariance, aleatoric + epistemic, aleatoric, epistemic)


def predict_draws(likelihood: Likelihood, outputs: Tensor, draws: Tensor) -> Prediction:
    """Predictions from outputs `draws` `(S, N, C)` of sampled weights; `outputs` at the mean."""
    covariance = sample_covariance(draws)
    if isinstance(likelihood, Gaussian):
        return gaussian_prediction(draws.mean(0), covariance, likelihood.dispersion)
    if isinstance(likelihood, Bernoulli):
        each = draws.sigmoid()
        information = binary_entropy(each.mean(0)) - binary_entropy(each).mean(0)
        return predict_answers(outputs, each.mean(0), covariance, information)
    each = draws.softmax(-1)
    total, aleatoric = entropy(each.mean(0)), entropy(each).mean(0)
    epistemic = (total - aleatoric).clamp_min(0)
    return Prediction(outputs, each.mean(0), covariance, total, total - epistemic, epistemic)


def predict_mixture(outputs: Tensor, mixture: Mixture, mask: Tensor) -> Prediction:
    """Predictions at every position, from a mixture over weights; `outputs` at the mean.

    Args:
        outputs: `(N, T, C)`.
        mixture: Over the same shape.
        mask: `(N, T)`, the positions that count.
    """
    total, epistemic = mixture.total, mixture.epistemic
    return Prediction(outputs, mixture.mean, None, total, total - epistemic, epistemic, mask=mask)


def predict_point(likelihood: Likelihood, outputs: Tensor) -> Prediction:
    """Predictions of the trained weights alone: no epistemic uncertainty."""
    if isinstance(likelihood, Gaussian):
        zero = outputs.new_zeros(*outputs.shape, outputs.shape[-1])
        prediction = gaussian_prediction(outputs, zero, likelihood.dispersion)
        return Prediction(**{**prediction.columns(), "covariance": None})  # type: ignore[arg-type]
    if isinstance(likelihood, Bernoulli):
        return predict_answers(outputs, outputs.sigmoid(), None, torch.zeros_like(outputs))
    probabilities = outputs.softmax(-1)
    total = entropy(probabilities)
    return Prediction(outputs, probabilities, None, total, total, torch.zeros_like(total))


def sample_covariance(draws: Tensor) -> Tensor:
    """Covariance `(N, C, C)` of draws `(S, N, C)`; zero for a single draw."""
    centred = draws - draws.mean(0)
    return torch.einsum("snc,snk->nck", centred, centred) / max(len(draws) - 1, 1)
