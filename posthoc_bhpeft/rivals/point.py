"""`Point`: the trained weights alone, for a model without a posterior."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from posthoc_bhpeft.batches import Inputs, device_of, evaluating, forward, move
from posthoc_bhpeft.likelihood import Categorical, Likelihood
from posthoc_bhpeft.predictive import Prediction
from posthoc_bhpeft.predictive.uncertainty import predict_point
from posthoc_bhpeft.rivals.rival import predict_batches


@dataclass(frozen=True)
class Point:
    """What the network itself says: the same numbers as `predictive.MAP`. Cost: one forward pass.

    Args:
        model: A trained model, with a posterior or without.
        likelihood: Of the labels given its outputs.
    """

    model: nn.Module
    likelihood: Likelihood = Categorical()

    @property
    def name(self) -> str:
        """For tables."""
        return "MAP"

    def predict(self, inputs: Inputs) -> Prediction:
        """Predict the inputs of one batch."""
        with evaluating(self.model), torch.no_grad():
            outputs = forward(self.model, move(inputs, device_of(self.model)))
        return predict_point(self.likelihood, outputs)

    def predict_loader(self, loader: Iterable[Any], *, progress: bool = True) -> Prediction:
        """See `Rival.predict_loader`."""
        return predict_batches(loader, self.predict, self.name, progress)
