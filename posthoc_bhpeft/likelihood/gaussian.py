"""Numbers with Gaussian noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from posthoc_bhpeft.errors import ConfigError, DataError
from posthoc_bhpeft.likelihood.labels import check_same_shape
from posthoc_bhpeft.likelihood.likelihood import RowLikelihood


@dataclass(frozen=True)
class Gaussian(RowLikelihood):
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

    def contrasts(self, n_outputs: int) -> Tensor:
        return torch.eye(n_outputs, dtype=torch.float64)

    def output_gradient(self, outputs: Tensor, labels: Tensor) -> Tensor:
        residual = outputs - labels.to(outputs.dtype).reshape(outputs.shape)
        return residual / self.dispersion
