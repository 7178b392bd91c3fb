r"""`KFAC`: classical Kronecker-factored curvature, for comparison and because users know it.

For a linear layer with inputs `a_nt (q,)` and output gradients `g_ntk (p,)`, K-FAC assumes that the
two are independent. With weights shared over `T` positions there are two readings
(Eschenhagen et al. 2023, https://arxiv.org/abs/2311.00636):

    expand:  H ~ sum_ntk g g^T  (x)  1/(N T) sum_nt a a^T
    reduce:  H ~ sum_nk g~ g~^T (x)  1/N sum_n a~ a~^T,   g~ = sum_t g_nt,  a~ = mean_t a_nt

Padding counts as positions in both, which is one of the reasons why `KroneckerGGN` is the default.
For a prefix, rows are unit vectors of virtual tokens, so expand treats tokens as independent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from posthoc_bhpeft.blocks import Observation, Observed
from posthoc_bhpeft.curvature.directions import Auto, Directions
from posthoc_bhpeft.curvature.sides import present, required
from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.linalg import KroneckerOperator


@dataclass(frozen=True)
class KFAC:
    """Classical K-FAC.

    Args:
        reduce: Sum over positions before the outer products, rather than after.
        directions: Output directions to differentiate.
    """

    reduce: bool = False
    directions: Directions = field(default_factory=Auto)

    def storage(self, block: Observed) -> int:
        """Numbers kept for one block."""
        return block.shape[0] ** 2 + block.shape[1] ** 2

    def accumulator(self, block: Observed) -> KFACAccumulator:
        """Zero factors `(p, p)` and `(q, q)`."""
        return KFACAccumulator(self.reduce)


class KFACAccumulator:
    """Separate second moments of output gradients and of inputs.

    Which side of an `Observation` depends on the direction differs: a linear layer's rows are
    gradients, a prefix's columns are. Summing both sides over directions and dividing by the number
    of terms on one side gives the definition above for either.
    """

    def __init__(self, reduce: bool) -> None:
        self.reduce = reduce
        self.left: Tensor | None = None
        self.right: Tensor | None = None
        self.n_terms = 0

    def add(self, observation: Observation) -> None:
        if not observation.factored:
            raise ConfigError(
                "KFAC() needs the inputs and the output gradients of each layer, and this engine "
                "gives their product only. Use KroneckerGGN(), or the default engine, observing."
            )
        rows, columns = observation.rows, observation.columns
        n_positions = rows.shape[1]
        if self.reduce:
            # The sum of one side and the mean of the other; L (x) R is the same either way.
            rows, columns = rows.sum(1, keepdim=True), columns.mean(1, keepdim=True)
            n_positions = 1
        left, right = second_moment(rows), second_moment(columns)
        self.left = left if self.left is None else self.left + left
        self.right = right if self.right is None else self.right + right
        self.n_terms += len(rows) * n_positions

    def sums(self) -> dict[str, Tensor]:
        found = present(left=self.left, right=self.right)
        count = torch.tensor(self.n_terms, dtype=torch.float64)  # exact up to 2^53 positions
        return {**found, "n_terms": count} if found else {}

    def restore(self, sums: Mapping[str, Tensor]) -> None:
        self.left, self.right = sums["left"], sums["right"]
        self.n_terms = int(sums["n_terms"])

    def finish(self) -> KroneckerOperator:
        return KroneckerOperator(required(self.left), required(self.right) / self.n_terms)


def second_moment(vectors: Tensor) -> Tensor:
    """`sum_nt v_nt v_nt^T` of `(N, T, d)`, shape `(d, d)`."""
    flat = vectors.reshape(-1, vectors.shape[-1])
    return flat.T @ flat
