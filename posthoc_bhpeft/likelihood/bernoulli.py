"""Independent yes-or-no answers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from posthoc_bhpeft.errors import DataError
from posthoc_bhpeft.likelihood.labels import check_same_shape
from posthoc_bhpeft.likelihood.likelihood import RowLikelihood


@dataclass(frozen=True)
class Bernoulli(RowLikelihood):
    """Independent yes-or-no outputs: labels `(N, C)` in [0, 1], `H = diag(p (1 - p))`."""

    def check_labels(self, outputs: Tensor, labels: Tensor) -> None:
        check_same_shape(outputs, labels, "Bernoulli")
        if bool(((labels < 0) | (labels > 1)).any()):
            raise DataError(
                f"Multi-label targets must lie in [0, 1], got {labels.min().item():g} to "
                f"{labels.max().item():g}. Give one 0 or 1 an output."
            )

    def nll(self, outputs: Tensor, labels: Tensor) -> Tensor:
        targets = labels.to(outputs.dtype).reshape(outputs.shape)
        loss = F.binary_cross_entropy_with_logits(outputs, targets, reduction="none")
        return loss.sum(-1)

    def hessian_root(self, outputs: Tensor) -> Tensor:
        p = outputs.sigmoid()
        return torch.diag_embed((p * (1 - p)).sqrt())

    def contrasts(self, n_outputs: int) -> Tensor:
        return torch.eye(n_outputs, dtype=torch.float64)

    def output_gradient(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return outputs.sigmoid() - labels.to(outputs.dtype).reshape(outputs.shape)
