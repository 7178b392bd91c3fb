r"""Temperature scaling: one number, fitted on held-out rows, that softens every prediction.

    p_T(c | x) proportional to p(c | x)^(1/T),   T = argmin_T  - sum_n log p_T(y_n | x_n)

For the network itself this is `softmax(f / T)` (Guo et al. 2017,
https://arxiv.org/abs/1706.04599); for any other predictive it is the same on the log of its
probabilities. In `b = 1/T` the loss is convex, so its one root of the derivative is found exactly.
It is a pure function of predictions: no pass through any model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from posthoc_bhpeft.batches import labelled_rows
from posthoc_bhpeft.errors import ConfigError, DataError, NonFiniteError
from posthoc_bhpeft.likelihood import Bernoulli, Categorical
from posthoc_bhpeft.predictive import Prediction
from posthoc_bhpeft.predictive.links import binary_entropy, entropy

BOUNDS = (0.05, 20.0)
"""Lowest and highest temperature that is tried, unless asked otherwise."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Temperature:
    """A fitted temperature, and how it was found.

    Attributes:
        value: `T`. Above 1 softens, below 1 sharpens; the predicted class never changes.
        rows: Held-out rows it was fitted on.
        before: Their mean NLL in nats at `T = 1`.
        after: Their mean NLL in nats at `T`.
        at_bound: Whether the NLL was still falling where the search ends.
    """

    value: float
    rows: int
    before: float
    after: float
    at_bound: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.value < float("inf"):
            raise ConfigError(f"Temperature({self.value!r}): a temperature must be above 0.")

    def apply(self, prediction: Prediction) -> Prediction:
        """The predictions at this temperature; the class of each row stays what it was.

        The total uncertainty is the entropy of the new probabilities. What the weights know about
        the label is not changed by a temperature, so `epistemic` stays, but for rows where the new
        total is below it; `aleatoric` is the rest. Logits are divided by `T` where the
        probabilities are those of the logits, and left alone otherwise.

        Args:
            prediction: Of the predictive that the temperature was fitted for.

        Raises:
            ConfigError: If it has no probabilities (regression).
        """
        scores = log_scores(prediction) / self.value
        if prediction.multilabel:
            probabilities = scores.sigmoid()
            total = binary_entropy(probabilities).sum(-1)
        else:
            probabilities = scores.softmax(-1)
            total = entropy(probabilities)
        epistemic = torch.minimum(prediction.epistemic.to(total), total)
        like = prediction.logits
        return replace(
            prediction,
            logits=like / self.value if is_point(prediction) else like,
            probabilities=probabilities.to(like),
            total=total.to(like),
            aleatoric=(total - epistemic).to(like),
            epistemic=epistemic.to(like),
        )

    def describe(self) -> str:
        """One sentence for people."""
        text = (
            f"Temperature {self.value:.3g}, fitted on {self.rows} held-out rows "
            f"(their NLL {self.before:.3f} before, {self.after:.3f} after)."
        )
        if self.at_bound:
            text += (
                " It is where the search ends, because no temperature is the best for these rows: "
                "all of them are right, or their labels are worse than chance. Do not rely on "
                "it; fit it on more rows."
            )
        return text


def fit_temperature(held_out: Prediction, *, bounds: tuple[float, float] = BOUNDS) -> Temperature:
    """The temperature with the lowest NLL on held-out rows; cost: no pass at all.

    The rows must have been used neither to train the model nor to choose its prior, and must not
    be the rows that are audited.

    Args:
        held_out: Predictions for held-out rows, with their labels. From `Point` or `MAP()` for
            plain temperature scaling, from ours for ours plus temperature.
        bounds: Lowest and highest temperature. Where all rows are right the NLL falls for ever as
            `T` goes to 0; where labels are worse than chance, as it goes to infinity. Then the
            result is the bound, and says so.

    Returns:
        The temperature; 1 where none makes a difference (every class equally probable).

    Raises:
        ConfigError: If these are no class probabilities, or the bounds are not `0 < low < high`.
        DataError: If there are no labels, no labelled rows, or labels that do not fit.
        NonFiniteError: If a logit or probability is NaN or infinite.
    """
    low, high = bounds
    if not 0 < low < high < float("inf"):
        raise ConfigError(f"bounds={bounds!r}: a lowest and a higher temperature, both above 0.")
    scores, targets = held_out_rows(held_out)
    rows = len(labels_kept(held_out))
    value = best_temperature(scores, targets, low, high)
    return Temperature(
        value=value,
        rows=rows,
        before=loss_at(scores, targets, 1.0) / rows,
        after=loss_at(scores, targets, 1 / value) / rows,
        at_bound=value in (low, high),
    )


def best_temperature(scores: Array, targets: Array, low: float, high: float) -> float:
    """The root of the slope of a convex loss in `b = 1/T`, or the bound where it has none."""
    from scipy.optimize import brentq

    if float(np.ptp(scores, axis=1).max()) == 0:
        return 1.0
    if slope_at(scores, targets, 1 / low) <= 0:
        return low
    if slope_at(scores, targets, 1 / high) >= 0:
        return high

    def slope(log_b: float) -> float:
        return slope_at(scores, targets, float(np.exp(log_b)))

    return float(np.exp(-brentq(slope, -np.log(high), -np.log(low), xtol=1e-12)))


def loss_at(scores: Array, targets: Array, b: float) -> float:
    """`sum_i logsumexp(b s_i) - b s_i . t_i`, in nats."""
    from scipy.special import logsumexp

    return float((logsumexp(b * scores, axis=1) - b * (scores * targets).sum(1)).sum())


def slope_at(scores: Array, targets: Array, b: float) -> float:
    """Its derivative, `sum_i (softmax(b s_i) - t_i) . s_i`."""
    from scipy.special import softmax

    return float(((softmax(b * scores, axis=1) - targets) * scores).sum())


def held_out_rows(prediction: Prediction) -> tuple[Array, Array]:
    """Scores and targets of the labelled rows; a yes-or-no answer is a row of two classes.

    Returns:
        Centred log-probabilities `(M, K)` and targets `(M, K)` that sum to 1, float64.

    Raises:
        DataError: If labels are missing or do not fit.
        NonFiniteError: If a score is NaN or infinite.
    """
    labels = labels_kept(prediction)
    assert prediction.labels is not None
    scores = log_scores(prediction)[labelled_rows(prediction.labels)]
    if not bool(torch.isfinite(scores).all()):
        raise NonFiniteError(
            "A held-out prediction holds NaN or infinity, so no temperature can be fitted. Look "
            "at the model's logits on these rows."
        )
    if prediction.multilabel:
        Bernoulli().check_labels(scores, labels)
        flat, yes = scores.flatten(), labels.to(scores).flatten()
        scores = torch.stack([torch.zeros_like(flat), flat], 1)
        targets = torch.stack([1 - yes, yes], 1)
    else:
        Categorical().check_labels(scores, labels)
        targets = torch.nn.functional.one_hot(labels.long(), scores.shape[1]).to(scores)
    centred = scores - scores.mean(1, keepdim=True)
    return centred.cpu().numpy(), targets.cpu().numpy()


def labels_kept(prediction: Prediction) -> Tensor:
    """The labels of the rows that have one.

    Raises:
        DataError: If there is none.
    """
    labels = prediction.labels
    if labels is None or not bool(labelled_rows(labels).any()):
        found = "have no labels" if labels is None else f"are {len(labels)}, none with a label"
        raise DataError(
            f"A temperature is fitted on held-out labelled rows, and these {found}. Give rows that "
            "the model was not trained on, with their labels."
        )
    return labels[labelled_rows(labels)]


def log_scores(prediction: Prediction) -> Tensor:
    """What a temperature divides, `(N, C)` in float64: log-probabilities, or log-odds of answers.

    Taken from the logits where the probabilities are theirs; else from the probabilities, none of
    them below the smallest number of their precision.

    Raises:
        ConfigError: If there are no probabilities.
    """
    p: Any = prediction.probabilities
    if p is None:
        raise ConfigError(
            "A temperature scales class probabilities, and these predictions are of a regression. "
            "There, fit the noise: Gaussian() learns its variance from the training rows."
        )
    if is_point(prediction):
        return prediction.logits.double()
    smallest, wide = torch.finfo(p.dtype).tiny, p.double()
    if prediction.multilabel:
        step = torch.finfo(p.dtype).eps
        odds: Tensor = wide.clamp(step, 1 - step)
        return odds.logit()
    logs: Tensor = wide.clamp_min(smallest).log()
    return logs


def is_point(prediction: Prediction) -> bool:
    """Whether the probabilities are those of the logits: nothing is epistemic anywhere."""
    return not bool(prediction.epistemic.any())
