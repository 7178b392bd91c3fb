r"""`KroneckerGGN`: Kronecker factors from per-sample gradients, the default.

For a block with per-sample gradients `G_nk (p, q)` the GGN is
`H = sum_nk vec(G_nk) vec(G_nk)^T`. Kept are

    L = sum_nk G_nk G_nk^T  (p, p),   R = sum_nk G_nk^T G_nk  (q, q),   H ~ L (x) R / trace(L).

`trace(L) = trace(R) = trace(H)`, so the approximation is exact in trace; it is exact altogether
where `H` is a Kronecker product (for instance a vector, `q = 1`, or gradients of rank one with
independent sides), and it needs no choice between K-FAC's *expand* and *reduce* for weights shared
over positions (Eschenhagen et al. 2023, https://arxiv.org/abs/2311.00636), because the sum over
positions happens inside `G`. It is the first step of the power iteration for the nearest Kronecker
product (Van Loan and Pitsianis 1993) started at the identity, known as the first step of KFOC,
Kronecker-factored optimal curvature (Schnaus et al. 2021).

With a `rank`, a wide side is kept as `M ~ U diag(s) U^T + rho (I - U U^T)`, its trace exact, from a
sketch `Y = M O` that batches add to (`SketchedSide`); the matrix itself is never formed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from posthoc_bhpeft.blocks import Observation, Observed
from posthoc_bhpeft.curvature.directions import Auto, Directions
from posthoc_bhpeft.curvature.sides import OVERSAMPLING, FullSide, Side, SketchedSide
from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.linalg import KroneckerOperator


@dataclass(frozen=True)
class KroneckerGGN:
    """Kronecker-factored GGN from per-sample gradients.

    Args:
        directions: Output directions to differentiate; `Auto()` chooses by the number of classes.
        rank: Eigenvectors to keep of a side that is `wide`; `None` keeps every side whole.
        wide: The width from which on, where there is a `rank`, a side is kept in low rank.

    Raises:
        ConfigError: If `rank` is below 1, or sides of width `wide` are smaller whole.
    """

    directions: Directions = field(default_factory=Auto)
    rank: int | None = None
    wide: int = 1024

    def __post_init__(self) -> None:
        if self.rank is not None and not 1 <= self.rank < self.wide / (OVERSAMPLING + 1):
            raise ConfigError(
                f"KroneckerGGN(rank={self.rank!r}, wide={self.wide!r}): the rank must be at least "
                f"1, and a side kept in low rank takes {OVERSAMPLING + 1} rank numbers a row, so "
                f"wide must be above {OVERSAMPLING + 1} rank. Give a larger wide, or no rank."
            )

    def __repr__(self) -> str:
        # `wide` says nothing where there is no rank.
        low = "" if self.rank is None else f", rank={self.rank}, wide={self.wide}"
        return f"{type(self).__name__}(directions={self.directions!r}{low})"

    def is_low_rank(self, width: int) -> bool:
        """Whether a side of this width is kept in low rank."""
        return self.rank is not None and width >= self.wide

    def storage(self, block: Observed) -> int:
        """Numbers kept for one block while data go by."""
        return sum(width * self.kept(width) for width in block.shape)

    def kept(self, width: int) -> int:
        """Numbers a row of one side: a sketch, and the same in half precision to make it with."""
        return (OVERSAMPLING + 1) * (self.rank or 0) if self.is_low_rank(width) else width

    def accumulator(self, block: Observed) -> KroneckerAccumulator:
        """Zero factors `(p, p)` and `(q, q)`, or sketches of them."""
        return KroneckerAccumulator(*(self.side(width) for width in block.shape))

    def side(self, width: int) -> Side:
        """An empty side."""
        if self.rank is not None and self.is_low_rank(width):
            return SketchedSide(width, self.rank)
        return FullSide(width)


class KroneckerAccumulator:
    """`L += sum_n G_n G_n^T` and `R += sum_n G_n^T G_n`."""

    def __init__(self, left: Side, right: Side) -> None:
        self.left, self.right = left, right

    def add(self, observation: Observation) -> None:
        rows, columns = observation.rows, observation.columns
        if fewer_positions(rows.shape[1], self.left, self.right):
            # With g_t in rows and x_t in columns, G G^T = sum_ts g_t (x_t . x_s) g_s^T.
            self.left.add(rows, columns @ columns.mT @ rows)
            self.right.add(columns, rows @ rows.mT @ columns)
            return
        gradient = observation.gradient()  # (N, p, q)
        across = gradient.transpose(0, 1).reshape(gradient.shape[1], -1).T
        self.left.add(across, across)
        self.right.add(gradient, gradient)

    def sums(self) -> dict[str, Tensor]:
        sides = {"left": self.left, "right": self.right}
        return {f"{at}_{n}": one for at, side in sides.items() for n, one in side.sums().items()}

    def restore(self, sums: Mapping[str, Tensor]) -> None:
        for at, side in (("left_", self.left), ("right_", self.right)):
            own = {n.removeprefix(at): one for n, one in sums.items() if n.startswith(at)}
            side.restore(own)

    def finish(self) -> KroneckerOperator:
        left, right = self.left.finish(), self.right.finish()
        # The trace is shared evenly, so that neither factor overflows when saved in half precision.
        root_trace = left.trace().sqrt().clamp_min(torch.finfo(left.dtype).tiny)
        return KroneckerOperator(left / root_trace, right / root_trace)


def fewer_positions(n_positions: int, left: Side, right: Side) -> bool:
    """Whether factors take fewer multiplications by way of positions than of `G (p, q)`.

    So it is for matrices larger than texts are long on both sides, such as products of LoRA layers.
    """
    p, q = left.size, right.size
    sums = p * left.columns, q * right.columns
    by_position = 2 * n_positions**2 * (p + q) + n_positions * sum(sums)
    return by_position < n_positions * p * q + q * sums[0] + p * sums[1]
