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
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from posthoc_bhpeft.blocks import Observation, Observed
from posthoc_bhpeft.curvature.directions import Auto, Directions
from posthoc_bhpeft.linalg import KroneckerOperator


@dataclass(frozen=True)
class KroneckerGGN:
    """Kronecker-factored GGN from per-sample gradients.

    Args:
        directions: Output directions to differentiate; `Auto()` chooses by the number of classes.
    """

    directions: Directions = field(default_factory=Auto)

    def storage(self, block: Observed) -> int:
        """Numbers kept for one block."""
        return block.shape[0] ** 2 + block.shape[1] ** 2

    def accumulator(self, block: Observed) -> KroneckerAccumulator:
        """Zero factors `(p, p)` and `(q, q)`."""
        return KroneckerAccumulator(block.shape)


class KroneckerAccumulator:
    """`L += sum_n G_n G_n^T` and `R += sum_n G_n^T G_n`."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.shape = shape
        self.left: Tensor | None = None
        self.right: Tensor | None = None

    def add(self, observation: Observation) -> None:
        rows, columns = observation.rows, observation.columns
        if fewer_positions(rows.shape[1], *self.shape):
            # With g_t in rows and x_t in columns, G G^T = sum_ts g_t (x_t . x_s) g_s^T.
            self.left = add_products(self.left, rows, columns @ columns.mT @ rows)
            self.right = add_products(self.right, columns, rows @ rows.mT @ columns)
            return
        gradient = observation.gradient()  # (N, p, q)
        across = gradient.transpose(0, 1).reshape(self.shape[0], -1).T
        self.left = add_products(self.left, across, across)
        self.right = add_products(self.right, gradient, gradient)

    def finish(self) -> KroneckerOperator:
        left, right = required(self.left), required(self.right)
        # The trace is shared evenly, so that neither factor overflows when saved in half precision.
        root_trace = left.trace().sqrt().clamp_min(torch.finfo(left.dtype).tiny)
        return KroneckerOperator(left / root_trace, right / root_trace)


def fewer_positions(n_positions: int, p: int, q: int) -> bool:
    """Whether factors take fewer multiplications by way of positions than of `G (p, q)`.

    So it is for matrices larger than texts are long on both sides, such as products of LoRA layers.
    """
    by_position = 2 * n_positions**2 * (p + q) + n_positions * (p * p + q * q)
    return by_position < n_positions * p * q + p * q * (p + q)


def add_products(total: Tensor | None, one: Tensor, other: Tensor) -> Tensor:
    """`total + sum_n u_n v_n^T` for vectors `(..., d)`; a total is added to in place."""
    u, v = one.reshape(-1, one.shape[-1]), other.reshape(-1, other.shape[-1])
    return u.T @ v if total is None else total.addmm_(u.T, v)


def required(total: Tensor | None) -> Tensor:
    """A sum that at least one batch was added to."""
    if total is None:
        raise RuntimeError("finish() before any add(): the fit saw no batch")
    return total
