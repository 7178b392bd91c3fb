"""`Sampled`: average the predictions of weights drawn from the posterior; and `MAP`, of none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from posthoc_bhpeft.batches import Inputs, device_of, evaluating, forward, move
from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.likelihood import Likelihood
from posthoc_bhpeft.posterior import Posterior, as_parameters
from posthoc_bhpeft.predictive.prediction import Prediction
from posthoc_bhpeft.predictive.uncertainty import predict_draws, predict_point


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
        inputs = move(inputs, device_of(model))
        generator = torch.Generator().manual_seed(self.seed)
        draws = []
        with evaluating(model), torch.no_grad():
            outputs = forward(model, inputs)
            for _ in range(self.samples):
                drawn = posterior.sample(1, generator)
                weights = {name: matrix[0] for name, matrix in drawn.items()}
                parameters = as_parameters(model, posterior.blocks, weights)
                draws.append(forward_with(model, parameters, inputs))
        return predict_draws(likelihood, outputs, torch.stack(draws))


@dataclass(frozen=True)
class MAP:
    """The trained weights alone: one forward pass, no epistemic uncertainty."""

    def predict(
        self, model: nn.Module, posterior: Posterior, likelihood: Likelihood, inputs: Inputs
    ) -> Prediction:
        """Predict one batch."""
        with evaluating(model), torch.no_grad():
            return predict_point(likelihood, forward(model, move(inputs, device_of(model))))


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


def forward_with(model: nn.Module, parameters: dict[str, Tensor], inputs: Inputs) -> Tensor:
    """Outputs `(N, C)` of the model at other weights."""
    return forward(Substituted(model, parameters), inputs)
