"""Passes through the network: of the fit, of the prior rule, of a prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from posthoc_bhpeft.curvature import Curvature, Subsample
from posthoc_bhpeft.likelihood import Bernoulli, Gaussian, Likelihood
from posthoc_bhpeft.predictive import MAP, Linearized, LogOdds, Sampled, Tangent
from posthoc_bhpeft.predictive.linearized import contrast_directions, fewest_directions
from posthoc_bhpeft.predictive.spectrum import POSITIONS
from posthoc_bhpeft.prior import GaussianPrior
from posthoc_bhpeft.selection import (
    Chained,
    FixedPrecision,
    HeldOut,
    LeaveOneOut,
    MarginalLikelihood,
    MatchedPrecision,
    VisiblePrecision,
)
from posthoc_bhpeft.selection.positions import tags_words
from posthoc_bhpeft.selection.rule import without_log_odds

FREE = (GaussianPrior, FixedPrecision, MarginalLikelihood, VisiblePrecision)
"""Rules that read the spectrum alone."""


@dataclass(frozen=True)
class Passes:
    """Of one step.

    Attributes:
        step: What for.
        batches: How many; `None` where that is not known.
        forward: A batch; `None` where a rule or predictive of the user's own is not known.
        backward: A batch, through activations only: about as much work as a forward pass.
    """

    step: str
    batches: int | None
    forward: int | None
    backward: int | None


@dataclass(frozen=True)
class Data:
    """How much there is.

    Attributes:
        rows: In all; `None` where that is not known.
        batch_size: `N`.
        masked: Whether texts have an attention mask, so that their tokens can be hidden.
    """

    rows: int | None
    batch_size: int
    masked: bool = False

    def batches(self, at_most: int | None = None) -> int | None:
        """Batches of all rows, or of about so many at most."""
        if self.rows is None:
            return None
        rows = self.rows if at_most is None else self.read(at_most)
        return max(-(-rows // self.batch_size), 1)

    def read(self, at_most: int) -> int:
        """Rows of a rule that reads no more than so many."""
        return at_most if self.rows is None else min(self.rows, at_most)


def count_passes(
    curvature: Curvature,
    likelihood: Likelihood,
    prior: Any,
    predictive: Any,
    outputs: Sequence[int],
    data: Data,
) -> tuple[Passes, ...]:
    """Of the fit over all data, of the prior rule, and of the prediction of one batch."""
    wanted = curvature.rows if isinstance(curvature, Subsample) else None
    fit = Passes("fit", data.batches(wanted), 1, fit_backwards(curvature, likelihood, outputs))
    return (
        fit,
        prior_passes(prior, likelihood, outputs, data),
        Passes("predict", 1, *predict_passes(predictive, likelihood, outputs)),
    )


def fit_backwards(curvature: Curvature, likelihood: Likelihood, outputs: Sequence[int]) -> int:
    """Output directions, asked of the estimator itself."""
    row = torch.zeros(1, *outputs)
    of_class = not isinstance(likelihood, Bernoulli | Gaussian)
    labels = torch.zeros(1, *outputs[:-1], dtype=torch.long) if of_class else row
    drawn = curvature.directions.draw(likelihood, row, labels, torch.Generator().manual_seed(0))
    return len(drawn)


def reading_rule(prior: Any) -> Any:
    """What chooses a precision: of a chained prior, the rule of its floor."""
    return prior.floor if isinstance(prior, Chained) else prior


def prior_passes(prior: Any, likelihood: Likelihood, outputs: Sequence[int], data: Data) -> Passes:
    """Of a rule that this package has; those of others are not known."""
    rule = reading_rule(prior)
    step = f"prior, {type(prior).__name__}"
    reads = isinstance(rule, LeaveOneOut | MatchedPrecision)
    once = hidden_alone(likelihood, outputs)
    if once and isinstance(rule, LeaveOneOut) and rule.hidden and data.masked:
        return Passes(step, data.batches(rule.read_rows(likelihood)), 1, once)
    if isinstance(rule, FREE) or (reads and without_log_odds(likelihood)):
        return Passes(step, 0, 0, 0)
    if isinstance(rule, LeaveOneOut | MatchedPrecision):
        passes = rule_passes(rule, likelihood, outputs, data)
        return Passes(step, data.batches(rule.max_rows), *passes)
    if isinstance(rule, HeldOut):
        fewest = fewest_directions(likelihood, torch.zeros(1, outputs[-1]), rule.link).shape[2]
        return Passes(step, len(rule.loader), 1, fewest)
    return Passes(step, None, None, None)


def hidden_alone(likelihood: Likelihood, outputs: Sequence[int]) -> int:
    """Backward passes a batch where rows are read with tokens hidden and not otherwise; or 0."""
    if isinstance(likelihood, Gaussian):
        return outputs[-1]
    return POSITIONS if tags_words(likelihood, outputs[-1]) else 0


def rule_passes(
    rule: LeaveOneOut | MatchedPrecision,
    likelihood: Likelihood,
    outputs: Sequence[int],
    data: Data,
) -> tuple[int, int]:
    """Forward and backward passes a batch of a rule that reads training rows once or twice."""
    fewest = fewest_directions(likelihood, torch.zeros(1, outputs[-1]), LogOdds()).shape[2]
    if isinstance(rule, MatchedPrecision):
        return 1, fewest
    answers = rule.answers_a_row(likelihood, outputs[-1], data.read(rule.max_rows))
    return (2, answers + fewest) if data.masked and rule.hidden else (1, answers)


def predict_passes(
    predictive: Any, likelihood: Likelihood, outputs: Sequence[int]
) -> tuple[int | None, int | None]:
    """Forward and backward passes a batch."""
    if isinstance(predictive, MAP):
        return 1, 0
    if isinstance(predictive, Sampled):
        return predictive.samples + 1, 0
    if isinstance(predictive, Tangent):
        return 2 * predictive.samples + 1, 0
    if not isinstance(predictive, Linearized):
        return None, None
    row = torch.zeros(1, outputs[-1])
    if not predictive.centred:
        return 1, outputs[-1]
    complete = contrast_directions(likelihood, row).shape[2]
    fewest = fewest_directions(likelihood, row, predictive.link).shape[2]
    return 1, fewest if complete > predictive.max_passes else complete
