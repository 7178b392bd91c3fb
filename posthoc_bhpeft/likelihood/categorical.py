"""One class a row."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from posthoc_bhpeft.errors import DataError
from posthoc_bhpeft.likelihood.labels import check_choice_there, check_class_labels
from posthoc_bhpeft.likelihood.likelihood import RowLikelihood, random_signs


@dataclass(frozen=True)
class Categorical(RowLikelihood):
    r"""Softmax classification: `nll = -log softmax(f)_y`, `H = diag(p) - p p^T`.

    `H` has rank `C - 1`: adding a constant to all logits changes nothing. The square root
    `S = diag(sqrt p) - p sqrt(p)^T` has `C` columns; `reduced_root` has `C - 1`.
    """

    def check_labels(self, outputs: Tensor, labels: Tensor) -> None:
        n_outputs = outputs.shape[-1]
        if n_outputs < 2:
            raise DataError(
                f"Classification needs at least 2 logits a row, got {n_outputs}. For regression "
                "pass likelihood=Gaussian(); for one yes-or-no logit pass likelihood=Bernoulli()."
            )
        check_class_labels(labels, n_outputs)
        check_choice_there(outputs, labels)

    def nll(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(outputs, labels.long(), reduction="none")

    def hessian_root(self, outputs: Tensor) -> Tensor:
        probabilities = outputs.softmax(-1)
        root = probabilities.sqrt()
        return torch.diag_embed(root) - probabilities[:, :, None] * root[:, None, :]

    def reduced_root(self, outputs: Tensor) -> Tensor:
        # H = D (I - s s^T) D with D = diag(sqrt p) and the unit vector s = sqrt p. A reflection
        # that maps the last axis to -s has an orthonormal complement of s in its other columns.
        unit = outputs.softmax(-1).sqrt()
        normal = mirror(unit)
        identity = torch.eye(unit.shape[-1], dtype=unit.dtype, device=unit.device)
        reflection = identity - 2 * normal[:, :, None] * normal[:, None, :]
        return unit[:, :, None] * reflection[:, :, :-1]

    def rank(self, n_outputs: int) -> float:
        return n_outputs - 1

    def signed_root(
        self, outputs: Tensor, labels: Tensor, samples: int, generator: torch.Generator | None
    ) -> Tensor:
        # The reduced root times signs, without the root: C numbers a row, also for a vocabulary.
        unit = outputs.softmax(-1).sqrt()
        normal = mirror(unit)
        n_rows, n_classes = outputs.shape
        signs = random_signs(samples, n_rows, n_classes - 1, generator).to(outputs)
        signs = F.pad(signs, (0, 1))
        along = (signs * normal).sum(-1, keepdim=True)
        return unit * (signs - 2 * along * normal)

    def contrasts(self, n_outputs: int) -> Tensor:
        # The same reflection for equal probabilities: an orthonormal basis of {v : sum v = 0}.
        unit = torch.full((n_outputs,), 1 / math.sqrt(n_outputs), dtype=torch.float64)
        normal = mirror(unit)
        reflection = torch.eye(n_outputs, dtype=torch.float64) - 2 * torch.outer(normal, normal)
        return reflection[:, :-1]

    def output_gradient(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return outputs.softmax(-1) - F.one_hot(labels.long(), outputs.shape[-1])


def mirror(unit: Tensor) -> Tensor:
    """Normal of the Householder reflection that maps the last axis to `-unit`, for `(..., C)`.

    The sign avoids cancellation where the last entry is large.
    """
    axis = torch.zeros_like(unit)
    axis[..., -1] = 1.0
    return F.normalize(unit + axis, dim=-1)
