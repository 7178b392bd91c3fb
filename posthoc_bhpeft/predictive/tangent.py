r"""`Tangent`: the linearised model along drawn weights, by forward passes alone.

    J (w_s - theta) ~ (f(theta + h (w_s - theta)) - f(theta - h (w_s - theta))) / 2 h

is the linearised model's answer to a draw `w_s`, at every position of a text at once and up to
`O(h^2)`. `Linearized` takes a backward pass for each output direction of a row; where a row has an
output direction at each of `T` positions, `2 S` forward passes are fewer, need no graph, and work
with attention kernels that have no second derivative.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from posthoc_bhpeft.batches import Inputs, device_of, evaluating, forward, move
from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.likelihood import Categorical, Likelihood, Tokens
from posthoc_bhpeft.posterior import Posterior
from posthoc_bhpeft.predictive.links import LogOdds, entropy
from posthoc_bhpeft.predictive.positions import counted_positions
from posthoc_bhpeft.predictive.prediction import Prediction
from posthoc_bhpeft.predictive.sampled import drawn_parameters, forward_with

STEPS = {torch.float64: 1e-4, torch.float32: 1e-2}
"""`h` by dtype of the weights: rounding is divided by it, what the network bends grows with it."""

ROUGH_STEP = 0.3
"""`h` where a part of the model is in half precision."""


@dataclass(frozen=True)
class Tangent:
    r"""Linearised predictive for many outputs a row: the default for `Tokens()`.

    The variance of the log-odds `M` of each position's most probable class is a mean over draws,

        v = 1/S sum_s (a . J (w_s - theta))^2,   a = dM/df,

    and probabilities follow from it by `LogOdds`: the most probable class stays what it was and, at
    a temperature of 1, is never more probable than the network says. The relative standard error of
    `v` is `sqrt(2 / S)`.

    Args:
        samples: `S`; a prediction takes `1 + 2 S` forward passes.
        seed: The same draws are used for every batch.
        temperature: Outputs are `N(f / T, V / T^2)`; see `Tempered`.
    """

    samples: int = 16
    seed: int = 0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ConfigError(f"Tangent(samples={self.samples}): at least 1 is needed.")
        if not 0 < self.temperature < math.inf:
            raise ConfigError(f"Tangent(temperature={self.temperature!r}): it is above 0.")

    def predict(
        self, model: nn.Module, posterior: Posterior, likelihood: Likelihood, inputs: Inputs
    ) -> Prediction:
        """Predict one batch; the model's own weights are never overwritten.

        Raises:
            ConfigError: If outputs are no logits of a softmax.
        """
        if not isinstance(likelihood, Categorical | Tokens):
            raise ConfigError(
                f"Tangent() is for a softmax, and the likelihood is {likelihood}. Use Linearized()."
            )
        inputs, positions = move(inputs, device_of(model)), likelihood.positions
        with evaluating(model), torch.no_grad():
            outputs = forward(model, inputs, positions=positions)
            scaled = outputs / self.temperature
            gradient = LogOdds.gradient(scaled) / self.temperature
            variance = torch.zeros_like(outputs[..., 0])
            for change in self.changes(model, posterior, inputs, positions=positions):
                variance += (gradient * change).sum(-1).square() / self.samples
        mask = counted_positions(model, inputs, outputs) if positions else None
        return replace(predict_log_odds(scaled, variance, mask), logits=outputs)

    def draws(
        self, model: nn.Module, posterior: Posterior, inputs: Inputs, *, positions: bool
    ) -> Iterator[Tensor]:
        """Outputs `(f + J (w_s - theta)) / T` of the linearised model, one draw after another."""
        outputs = forward(model, inputs, positions=positions)
        for change in self.changes(model, posterior, inputs, positions=positions):
            yield (outputs + change) / self.temperature

    def changes(
        self, model: nn.Module, posterior: Posterior, inputs: Inputs, *, positions: bool
    ) -> Iterator[Tensor]:
        """`J (w_s - theta)`, of the outputs' shape, one draw after another."""
        step, mean = step_for(model), dict(model.named_parameters())
        for drawn in drawn_parameters(model, posterior, self.samples, self.seed):
            ahead, behind = (
                forward_with(model, moved(mean, drawn, h), inputs, positions=positions)
                for h in (step, -step)
            )
            yield (ahead - behind) / (2 * step)


def moved(
    mean: Mapping[str, Tensor], drawn: Mapping[str, Tensor], step: float
) -> dict[str, Tensor]:
    """`theta + h (w - theta)` by name."""
    return {name: torch.lerp(mean[name].detach(), end, step) for name, end in drawn.items()}


def step_for(model: nn.Module) -> float:
    """`h` for the coarsest number format in a model."""
    formats = {p.dtype for p in model.parameters() if p.is_floating_point()}
    return max(STEPS.get(dtype, ROUGH_STEP) for dtype in formats)


def predict_log_odds(outputs: Tensor, variance: Tensor, mask: Tensor | None) -> Prediction:
    """Predictions by the `LogOdds` link, from the variance of each position's log-odds.

    Args:
        outputs: `(..., C)` at the mean.
        variance: `(...)`.
        mask: `(N, T)`, the positions that count, where there are any.
    """
    link = LogOdds()
    probabilities = link.softened(outputs, variance)
    total = entropy(probabilities)
    epistemic = torch.minimum(link.information_at(outputs, variance), total)
    return Prediction(outputs, probabilities, None, total, total - epistemic, epistemic, mask=mask)
