"""`Sampled`: average the predictions of weights drawn from the posterior; and `MAP`, of none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from posthoc_bhpeft.batches import Inputs, device_of, evaluating, forward, move
from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.likelihood import Likelihood
from posthoc_bhpeft.posterior import Posterior, as_parameters
from posthoc_bhpeft.predictive.mixture import Mixture
from posthoc_bhpeft.predictive.positions import counted_positions
from posthoc_bhpeft.predictive.prediction import Prediction
from posthoc_bhpeft.predictive.uncertainty import predict_draws, predict_mixture, predict_point


@dataclass(frozen=True)
class Sampled:
    """`mean_s softmax(f(x; w_s))` with `w_s` from the posterior: `samples` forward passes.

    The network itself is evaluated, not its linearisation, at weights that a linearised posterior
    may put far away; with wide posteriors it is often worse than `Linearized` (Immer et al. 2021,
    https://arxiv.org/abs/2008.08400).

    Args:
        samples: `S`, the number of weight draws.
        seed: The same draws are used for every batch.
    """

    samples: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ConfigError(f"Sampled(samples={self.samples}): at least 1 is needed.")

    def predict(
        self, model: nn.Module, posterior: Posterior, likelihood: Likelihood, inputs: Inputs
    ) -> Prediction:
        """Predict one batch; the model's own weights are never overwritten."""
        inputs, positions = move(inputs, device_of(model)), likelihood.positions
        with evaluating(model), torch.no_grad():
            outputs = forward(model, inputs, positions=positions)
            draws = self.draws(model, posterior, inputs, positions=positions)
            if not positions:
                return predict_draws(likelihood, outputs, torch.stack(list(draws)))
            mixture = Mixture.of(draws)
        return predict_mixture(outputs, mixture, counted_positions(model, inputs, outputs))

    def draws(
        self, model: nn.Module, posterior: Posterior, inputs: Inputs, *, positions: bool
    ) -> Iterator[Tensor]:
        """Outputs at one draw of the weights after another."""
        for parameters in drawn_parameters(model, posterior, self.samples, self.seed):
            yield forward_with(model, parameters, inputs, positions=positions)


@dataclass(frozen=True)
class MAP:
    """The trained weights alone: one forward pass, no epistemic uncertainty."""

    def predict(
        self, model: nn.Module, posterior: Posterior, likelihood: Likelihood, inputs: Inputs
    ) -> Prediction:
        """Predict one batch."""
        inputs = move(inputs, device_of(model))
        with evaluating(model), torch.no_grad():
            outputs = forward(model, inputs, positions=likelihood.positions)
        point = predict_point(likelihood, outputs)
        if not likelihood.positions:
            return point
        return replace(point, mask=counted_positions(model, inputs, outputs))


def drawn_parameters(
    model: nn.Module, posterior: Posterior, samples: int, seed: int
) -> Iterator[dict[str, Tensor]]:
    """Parameters by name, one draw from the posterior after another; the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(samples):
        drawn = posterior.sample(1, generator)
        weights = {name: matrix[0] for name, matrix in drawn.items()}
        yield as_parameters(model, posterior.blocks, weights)


class Substituted(nn.Module):
    """A model with other weights for the time of one call, in the shape `forward` expects."""

    def __init__(self, model: nn.Module, parameters: dict[str, Tensor]) -> None:
        super().__init__()
        # Kept out of the module tree: the user's model must not get a parent.
        self.__dict__["substituted"] = (model, parameters)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model at the other weights."""
        model, parameters = self.__dict__["substituted"]
        return torch.func.functional_call(model, parameters, args, kwargs)


def forward_with(
    model: nn.Module, parameters: dict[str, Tensor], inputs: Inputs, *, positions: bool = False
) -> Tensor:
    """Outputs `(N, C)`, or `(N, T, C)` with positions, of the model at other weights."""
    return forward(Substituted(model, parameters), inputs, positions=positions)
