"""`Placed`: an estimator whose sums are kept on another device, or in another precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from posthoc_bhpeft.blocks import Observation, Observed
from posthoc_bhpeft.curvature.directions import Directions
from posthoc_bhpeft.curvature.estimator import Accumulator, Curvature, summed_by
from posthoc_bhpeft.curvature.kfac import KFAC
from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.linalg import BlockOperator

IN_PARTS = "a fit by several processes or with resume="
PRECISIONS = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Placed:
    """Sums, factors and eigenbases off the accelerator, or in double precision.

    ```python
    bayes = bayesianize(model, loader, curvature=Placed(KroneckerGGN(), device="cpu"))
    ```

    Per-sample gradients are copied to the device and added up there; each copy is waited for. The
    device also decomposes the factors, and predictions copy eigenvectors back block by block: what
    is won in memory is paid in time. Where a side is wide, `KroneckerGGN(rank=...)` saves more and
    costs nothing. On a model that is there already nothing changes.

    Args:
        estimator: What is kept.
        device: Where; `None` for the model's own.
        dtype: "float32" or "float64"; `None` for that of the gradients, which is float32 unless
            the model is wider.

    Raises:
        ConfigError: If `dtype` is another. Half precision is not for sums: they stop growing when
            what is added is a few hundred times smaller than what is there.
    """

    estimator: Curvature
    device: str | None = "cpu"
    dtype: str | None = None

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in PRECISIONS:
            raise ConfigError(
                f"Placed(dtype={self.dtype!r}): sums are kept in float32 or float64. In half "
                "precision they stop growing after a few hundred batches. To save memory, use "
                "KroneckerGGN(rank=...) or DiagonalGGN()."
            )

    @property
    def directions(self) -> Directions:
        """Those of the estimator."""
        return self.estimator.directions

    def storage(self, block: Observed) -> int:
        """Numbers kept for one block."""
        return self.estimator.storage(block)

    def accumulator(self, block: Observed) -> PlacedAccumulator:
        """The estimator's own, given observations that were moved."""
        needs_sides = isinstance(self.estimator, KFAC)
        return PlacedAccumulator(self, self.estimator.accumulator(block), needs_sides)


@dataclass
class PlacedAccumulator:
    """Moves every observation, then adds it."""

    placed: Placed
    inner: Accumulator
    needs_sides: bool

    def add(self, observation: Observation) -> None:
        device = observation.rows.device if self.placed.device is None else self.placed.device
        dtype = PRECISIONS.get(self.placed.dtype or "", observation.rows.dtype)
        if torch.device(device) != observation.rows.device and not self.needs_sides:
            observation = smaller(observation)
        rows, columns = (
            side.to(device=device, dtype=dtype) for side in (observation.rows, observation.columns)
        )
        self.inner.add(replace(observation, rows=rows, columns=columns))

    def sums(self) -> dict[str, Tensor]:
        return summed_by(self.inner, IN_PARTS).sums()

    def restore(self, sums: Mapping[str, Tensor]) -> None:
        device = self.placed.device
        summed_by(self.inner, IN_PARTS).restore(
            {n: one if device is None else one.to(device) for n, one in sums.items()}
        )

    def finish(self) -> BlockOperator:
        return self.inner.finish()


def smaller(observation: Observation) -> Observation:
    """The gradient with an identity, where its two sides are larger than itself."""
    rows, columns = observation.rows, observation.columns
    (_, positions, p), q = rows.shape, columns.shape[2]
    if positions * (p + q) <= p * q + min(p, q) ** 2:
        return observation
    return Observation.of_gradient(observation.gradient())
