"""`DenseGGN`: the exact `(P, P)` GGN of each block, for small blocks and as an oracle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from posthoc_bhpeft.blocks import Observation, Observed
from posthoc_bhpeft.curvature.directions import Contrasts, Directions
from posthoc_bhpeft.curvature.sides import present, required
from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.linalg import DenseOperator


@dataclass(frozen=True)
class DenseGGN:
    """`H = sum_nk vec(G_nk) vec(G_nk)^T`, exactly; block-diagonality is the only approximation.

    Args:
        directions: Output directions to differentiate; exact ones by default.
        max_size: Largest `P` of a block that is accepted; memory is `P^2` numbers a block.
    """

    directions: Directions = field(default_factory=Contrasts)
    max_size: int = 4096

    def storage(self, block: Observed) -> int:
        """Numbers kept for one block."""
        return block.size**2

    def accumulator(self, block: Observed) -> DenseAccumulator:
        """A zero matrix `(P, P)`.

        Raises:
            ConfigError: If the block has more than `max_size` weights.
        """
        if block.size > self.max_size:
            gib = block.size**2 * 4 / 2**30
            raise ConfigError(
                f"DenseGGN: block {block.name!r} has {block.size} weights, more than max_size="
                f"{self.max_size}; its matrix would take {gib:.1f} GiB. Use KroneckerGGN()."
            )
        return DenseAccumulator(block.shape[0])


class DenseAccumulator:
    """`H += sum_n vec(G_n) vec(G_n)^T`."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.total: Tensor | None = None

    def add(self, observation: Observation) -> None:
        flat = observation.gradient().flatten(1)
        outer = flat.T @ flat
        self.total = outer if self.total is None else self.total + outer

    def sums(self) -> dict[str, Tensor]:
        return present(total=self.total)

    def restore(self, sums: Mapping[str, Tensor]) -> None:
        self.total = sums["total"]

    def finish(self) -> DenseOperator:
        return DenseOperator(required(self.total), self.rows)
