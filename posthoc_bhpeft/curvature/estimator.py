"""`Curvature` and `Accumulator`: the contract of every estimator, and what a fit returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from posthoc_bhpeft.blocks import Observation, Observed
from posthoc_bhpeft.curvature.directions import Directions
from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.linalg import BlockOperator


class Accumulator(Protocol):
    """Sums the curvature of one block over data; a new one for each fit."""

    def add(self, observation: Observation) -> None:
        """Add one batch, seen in one output direction."""
        ...

    def finish(self) -> BlockOperator:
        """The curvature of the block, summed over all data added."""
        ...


@runtime_checkable
class Summed(Protocol):
    """An accumulator whose state is a few plain sums over data.

    So parts of it can be added up: those of several processes, or of a fit before and after it was
    killed. Needed for nothing else.
    """

    def sums(self) -> dict[str, Tensor]:
        """The sums so far by name; empty before the first batch."""
        ...

    def restore(self, sums: Mapping[str, Tensor]) -> None:
        """Take these sums in place of its own."""
        ...


class Curvature(Protocol):
    """An estimator of the block-diagonal GGN: output directions, and a structure for each block."""

    @property
    def directions(self) -> Directions:
        """Which output directions are differentiated."""
        ...

    def storage(self, block: Observed) -> int:
        """Numbers kept for one block, to check the memory before a fit."""
        ...

    def accumulator(self, block: Observed) -> Accumulator:
        """An empty accumulator for one block."""
        ...


def summed_by(total: Accumulator, purpose: str) -> Summed:
    """An accumulator that tells its sums.

    Raises:
        ConfigError: If it does not.
    """
    if isinstance(total, Summed):
        return total
    raise ConfigError(
        f"{type(total).__name__} has no methods sums() and restore(), which {purpose} needs: parts "
        "are added up (docs/extending.md). Add them, or fit with one process and without resume=."
    )


def nested(curvature: Curvature) -> Iterator[Curvature]:
    """The estimator, and those inside it (`Placed`, `Subsample`)."""
    inner: Curvature | None = curvature
    while inner is not None:
        yield inner
        inner = getattr(inner, "estimator", None)


@dataclass(frozen=True)
class FittedCurvature:
    """What one pass over the data found.

    Attributes:
        operators: Curvature of each block and product by name, a sum over rows.
        log_likelihood: `sum_n log p(y_n | f_n)` in nats at the model's weights.
        n_rows: Number of labelled rows.
        n_outputs: `C`.
    """

    operators: Mapping[str, BlockOperator]
    log_likelihood: float
    n_rows: int
    n_outputs: int

    def scaled_to(self, n_rows: int) -> FittedCurvature:
        """What `n_rows` rows would give if they were all like these: every sum in proportion."""
        factor = n_rows / self.n_rows
        operators = {name: one.scale(factor) for name, one in self.operators.items()}
        return FittedCurvature(operators, self.log_likelihood * factor, n_rows, self.n_outputs)
