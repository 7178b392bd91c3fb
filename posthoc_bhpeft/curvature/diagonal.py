"""`DiagonalGGN`: the diagonal of the GGN, exactly; what most EWC code keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from posthoc_bhpeft.blocks import Observation, Observed
from posthoc_bhpeft.curvature.directions import Auto, Directions
from posthoc_bhpeft.curvature.sides import present, required
from posthoc_bhpeft.linalg import DiagonalOperator


@dataclass(frozen=True)
class DiagonalGGN:
    """`diag(H) = sum_nk G_nk * G_nk`; its correlations between weights are dropped.

    Args:
        directions: Output directions to differentiate.
    """

    directions: Directions = field(default_factory=Auto)

    def storage(self, block: Observed) -> int:
        """Numbers kept for one block."""
        return block.size

    def accumulator(self, block: Observed) -> DiagonalAccumulator:
        """A zero diagonal `(p, q)`."""
        return DiagonalAccumulator()


class DiagonalAccumulator:
    """`D += sum_n G_n * G_n`."""

    def __init__(self) -> None:
        self.total: Tensor | None = None

    def add(self, observation: Observation) -> None:
        squared = observation.gradient().square().sum(0)
        self.total = squared if self.total is None else self.total + squared

    def sums(self) -> dict[str, Tensor]:
        return present(total=self.total)

    def restore(self, sums: Mapping[str, Tensor]) -> None:
        self.total = sums["total"]

    def finish(self) -> DiagonalOperator:
        return DiagonalOperator(required(self.total))
