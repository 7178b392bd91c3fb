r"""Likelihoods: negative log likelihood, and square roots of its Hessian in the model's outputs.

The generalised Gauss-Newton matrix (GGN) of `sum_n nll(f_n, y_n)` is `sum_n J_n^T H_n J_n`, with
`H_n = d^2 nll / d f_n^2` of shape `(C, C)`. With a root `S_n S_n^T = H_n` it is a sum of outer
products of gradients of the scalars `f_n . s_nk`, which is all that curvature estimators ask of a
likelihood. See Schraudolph (2002), "Fast curvature matrix-vector products", and Martens (2020),
https://arxiv.org/abs/1412.1193.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from posthoc_bhpeft.errors import ConfigError, DataError


class Likelihood(Protocol):
    """What curvature, evidence and predictive need to know about the outputs of a model."""

    @property
    def dispersion(self) -> float:
        """Factor by which `nll` and its Hessian are divided: the noise variance, or 1."""
        ...

    def check_labels(self, outputs: Tensor, labels: Tensor) -> None:
        """Raise `DataError` if labels `(N, ...)` do not fit outputs `(N, C)`."""
        ...

    def nll(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Negative log likelihood in nats of each row, `(N,)`."""
        ...

    def hessian_root(self, outputs: Tensor) -> Tensor:
        """`S` of shape `(N, C, C)` with `S S^T` the Hessian of `nll` in the outputs."""
        ...

    def reduced_root(self, outputs: Tensor) -> Tensor:
        """A root with the fewest columns, `(N, C, K)` with `K <= C`; the same `S S^T`."""
        ...

    def contrasts(self, n_outputs: int) -> Tensor:
        """Orthonormal `(C, K)`: the output directions that change a prediction."""
        ...

    def output_gradient(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Gradient of `nll` in the outputs, `(N, C)`."""
        ...


@dataclass(frozen=True)
class Categorical(Likelihood):
    r"""Softmax classification: `nll = -log softmax(f)_y`, `H = diag(p) - p p^T`.

    `H` has rank `C - 1`: adding a constant to all logits changes nothing. The square root
    `S = diag(sqrt p) - p sqrt(p)^T` has `C` columns; `reduced_root` has `C - 1`.
    """

    @property
    def dispersion(self) -> float:
        return 1.0

    def check_labels(self, outputs: Tensor, labels: Tensor) -> None:
        n_outputs = outputs.shape[-1]
        if n_outputs < 2:
            raise DataError(
                f"Classification needs at least 2 logits a row, got {n_outputs}. For regression "
                "pass likelihood=Gaussian(); for one yes-or-no logit pass likelihood=Bernoulli()."
            )
        check_class_labels(labels, n_outputs)

    def nll(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(outputs, labels.long(), reduction="none")

    def hessian_root(self, outputs: Tensor) -> Tensor:
        probabilities = outputs.softmax(-1)
        root = probabilities.sqrt()
        return torch.diag_embed(root) - probabilities[:, :, None] * root[:, None, :]

    def reduced_root(self, outputs: Tensor) -> Tensor:
        # H = D (I - s s^T) D with D = diag(sqrt p) and the unit vector s = sqrt p. A Householder
        # reflection that maps the last axis to -s has an orthonormal complement of s in its
        # other columns; the sign avoids cancellation.
        unit = outputs.softmax(-1).sqrt()
        axis = torch.zeros_like(unit)
        axis[:, -1] = 1.0
        normal = F.normalize(unit + axis, dim=-1)
        identity = torch.eye(unit.shape[-1], dtype=unit.dtype, device=unit.device)
        reflection = identity - 2 * normal[:, :, None] * normal[:, None, :]
        return unit[:, :, None] * reflection[:, :, :-1]

    def contrasts(self, n_outputs: int) -> Tensor:
        # The same reflection for equal probabilities: an orthonormal basis of {v : sum v = 0}.
        unit = torch.full((n_outputs,), 1 / math.sqrt(n_outputs), dtype=torch.float64)
        axis = torch.zeros_like(unit)
        axis[-1] = 1.0
        normal = F.normalize(unit + axis, dim=0)
        reflection = torch.eye(n_outputs, dtype=torch.float64) - 2 * torch.outer(normal, normal)
        return reflection[:, :-1]

    def output_gradient(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return outputs.softmax(-1) - F.one_hot(labels.long(), outputs.shape[-1])


@dataclass(frozen=True)
class Bernoulli(Likelihood):
    """Independent yes-or-no outputs: labels `(N, C)` in [0, 1], `H = diag(p (1 - p))`."""

    @property
    def dispersion(self) -> float:
        return 1.0

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

    def reduced_root(self, outputs: Tensor) -> Tensor:
        return self.hessian_root(outputs)

    def contrasts(self, n_outputs: int) -> Tensor:
        return torch.eye(n_outputs, dtype=torch.float64)

    def output_gradient(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return outputs.sigmoid() - labels.to(outputs.dtype).reshape(outputs.shape)


@dataclass(frozen=True)
class Gaussian(Likelihood):
    """Regression with one noise variance `s2`.

    `nll = |y - f|^2 / (2 s2) + C/2 log(2 pi s2)` and `H = I / s2`.

    Args:
        noise_variance: `s2` in squared units of the label. `None` learns it, by maximising the
            evidence together with the prior precision.
    """

    noise_variance: float | None = None

    def __post_init__(self) -> None:
        if self.noise_variance is not None and not self.noise_variance > 0:
            raise ConfigError(
                f"Gaussian(noise_variance={self.noise_variance!r}): a variance must be above 0."
            )

    @property
    def dispersion(self) -> float:
        return 1.0 if self.noise_variance is None else self.noise_variance

    def check_labels(self, outputs: Tensor, labels: Tensor) -> None:
        check_same_shape(outputs, labels, "Gaussian")
        if not bool(torch.isfinite(labels).all()):
            raise DataError("A regression label is NaN or infinite. Drop or impute those rows.")

    def nll(self, outputs: Tensor, labels: Tensor) -> Tensor:
        residual = labels.to(outputs.dtype).reshape(outputs.shape) - outputs
        constant = 0.5 * math.log(2 * math.pi * self.dispersion)
        return (residual.square() / (2 * self.dispersion) + constant).sum(-1)

    def hessian_root(self, outputs: Tensor) -> Tensor:
        identity = torch.eye(outputs.shape[-1], dtype=outputs.dtype, device=outputs.device)
        return (identity / math.sqrt(self.dispersion)).expand(len(outputs), -1, -1)

    def reduced_root(self, outputs: Tensor) -> Tensor:
        return self.hessian_root(outputs)

    def contrasts(self, n_outputs: int) -> Tensor:
        return torch.eye(n_outputs, dtype=torch.float64)

    def output_gradient(self, outputs: Tensor, labels: Tensor) -> Tensor:
        residual = outputs - labels.to(outputs.dtype).reshape(outputs.shape)
        return residual / self.dispersion


def check_class_labels(labels: Tensor, n_classes: int) -> None:
    """Raise `DataError` unless every label `(N,)` is an integer in `0 .. n_classes - 1`."""
    if labels.is_floating_point():
        raise DataError(
            f"Class labels must be integers, got {labels.dtype}. For regression pass "
            "likelihood=Gaussian(), for multi-label targets likelihood=Bernoulli()."
        )
    if labels.dim() != 1:
        raise DataError(
            f"Class labels must have shape (N,), got {tuple(labels.shape)}. Call "
            "labels.squeeze(-1), or pass likelihood=Bernoulli() if each row has several yes-or-no "
            "labels."
        )
    wrong = (labels < 0) | (labels >= n_classes)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise DataError(
            f"Label {int(labels[row])} in row {row} of the batch is out of range: the model has "
            f"{n_classes} outputs, so labels must be 0 to {n_classes - 1}. Load the model with the "
            "right num_labels, or drop the row (-100 marks rows without a label)."
        )


def check_same_shape(outputs: Tensor, labels: Tensor, name: str) -> None:
    """Raise `DataError` unless labels hold one number for every output."""
    if labels.numel() != outputs.numel():
        raise DataError(
            f"{name}() needs one target an output: outputs have shape {tuple(outputs.shape)}, "
            f"labels {tuple(labels.shape)}."
        )
