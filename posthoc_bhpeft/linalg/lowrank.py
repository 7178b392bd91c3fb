r"""Wide factors in low rank: `M ~ U diag(s) U^T + rho (I - U U^T)`, nothing of size `n x n`.

`U` `(n, k)` holds `k` orthonormal columns, and `rho` is the mean of the eigenvalues that are left
out, so that the **trace is kept**. Without it (`rho = 0`) all directions but `k` would count as
unseen by the data, and the log-determinant of a posterior would be far too small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from posthoc_bhpeft.linalg.precision import wide


@dataclass(frozen=True)
class LowRankFactor:
    """A symmetric positive semi-definite `(n, n)` matrix; acts like one on tensors with `@`.

    Attributes:
        vectors: `U` `(n, k)`, orthonormal columns.
        values: `s` `(k,)`, their eigenvalues.
        rest: `rho`, a scalar tensor: the eigenvalue of every direction orthogonal to `U`.
    """

    vectors: Tensor
    values: Tensor
    rest: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.vectors.shape[0], self.vectors.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        return self.vectors.dtype

    @property
    def device(self) -> torch.device:
        return self.vectors.device

    @property
    def excess(self) -> Tensor:
        """`s - rho`, so that `M = U diag(s - rho) U^T + rho I`."""
        return self.values - self.rest

    def __rmatmul__(self, matrix: Tensor) -> Tensor:
        """`X M` for `(..., n)`."""
        return (matrix @ self.vectors * self.excess) @ self.vectors.mT + self.rest * matrix

    def __matmul__(self, matrix: Tensor) -> Tensor:
        """`M X` for `(..., n, m)`."""
        return (matrix.mT @ self).mT

    def __mul__(self, factor: float | Tensor) -> LowRankFactor:
        return replace(self, values=self.values * factor, rest=self.rest * factor)

    def __truediv__(self, divisor: float | Tensor) -> LowRankFactor:
        return replace(self, values=self.values / divisor, rest=self.rest / divisor)

    def trace(self) -> Tensor:
        return self.values.sum() + self.rest * (self.shape[0] - len(self.values))

    def norm(self) -> Tensor:
        """Frobenius."""
        others = self.shape[0] - len(self.values)
        return (self.values.square().sum() + self.rest.square() * others).sqrt()

    def full(self) -> Tensor:
        """The `(n, n)` matrix, for tests and for what cannot do without."""
        identity = torch.eye(self.shape[0], dtype=self.dtype, device=self.device)
        return identity @ self

    def to(self, *, device: torch.device, dtype: torch.dtype) -> LowRankFactor:
        """On another device, in another precision."""
        parts = (self.vectors, self.values, self.rest)
        return LowRankFactor(*(part.to(device=device, dtype=dtype) for part in parts))


Factor = Tensor | LowRankFactor
"""A side of a Kronecker product: the matrix itself, or a wide one in low rank."""


def full(factor: Factor) -> Tensor:
    """The matrix of a factor."""
    return factor.full() if isinstance(factor, LowRankFactor) else factor


def widened(factor: Factor) -> Factor:
    """A factor in float64."""
    if isinstance(factor, LowRankFactor):
        return LowRankFactor(wide(factor.vectors), wide(factor.values), wide(factor.rest))
    return wide(factor)


def cast(factor: Factor, like: Factor) -> Factor:
    """A factor on the device and in the dtype of another."""
    return factor.to(device=like.device, dtype=like.dtype)


def from_sketch(sketch: Tensor, test: Tensor, trace: Tensor, rank: int) -> LowRankFactor:
    r"""The factor `M` from what a pass over the data kept of it: `Y = M O` and its trace.

    The Nystrom approximation `Y (O^T Y)^+ Y^T` of a fixed rank (Tropp et al. 2017, "Fixed-rank
    approximation of a positive-semidefinite matrix from streaming data",
    https://arxiv.org/abs/1706.05736). It is never above `M`, so what the trace has more is not
    negative. Exact where the rank of `M` is at most `rank`.

    Args:
        sketch: `Y` `(n, l)`.
        test: `O` `(n, l)`, random; `l` is larger than `rank`, twice as large for instance.
        trace: Of `M`, exact.
        rank: `k`, at most `l`.
    """
    image, rounding = wide(sketch), torch.finfo(sketch.dtype).eps
    core = wide(test).mT @ image
    weights, turn = torch.linalg.eigh(0.5 * (core + core.mT))
    # What is below the rounding of the sketch's own sums is not known.
    known = weights > sketch.shape[1] * rounding * weights[-1]
    root = image @ (turn[:, known] / weights[known].sqrt())
    vectors, roots, _ = torch.linalg.svd(root, full_matrices=False)
    return with_trace(vectors[:, :rank], roots[:rank].square(), trace, sketch)


def with_trace(vectors: Tensor, values: Tensor, trace: Tensor, like: Tensor) -> LowRankFactor:
    """Eigenvectors and eigenvalues, and a `rho` that makes up the trace."""
    others = max(vectors.shape[0] - len(values), 1)
    rest = ((wide(trace) - values.sum()) / others).clamp_min(0)
    return LowRankFactor(vectors.to(like), values.to(like), rest.to(like))


def compressed(factor: Factor, rank: int) -> Factor:
    """A low-rank factor with at most `rank` vectors, its trace kept; others as they are."""
    if not isinstance(factor, LowRankFactor) or len(factor.values) <= rank:
        return factor
    values, order = factor.values.sort(descending=True)
    kept = factor.vectors[:, order[:rank]]
    return with_trace(kept, wide(values[:rank]), factor.trace(), factor.vectors)


def inner(one: Factor, other: Factor) -> Tensor:
    """Frobenius inner product, float64."""
    if not isinstance(one, LowRankFactor):
        if isinstance(other, LowRankFactor):
            return inner(other, one)
        return wide(one).flatten() @ wide(other).flatten()
    # <U D U^T + r I, B> = sum_i D_i u_i^T B u_i + r tr(B)
    along = quadratic(other, wide(one.vectors))
    return wide(one.excess) @ along + wide(one.rest) * wide(other.trace())


def quadratic(factor: Factor, vectors: Tensor) -> Tensor:
    """`v^T M v` for every column `v` of `(n, m)` in float64, not below zero."""
    return (vectors * (widened(factor) @ vectors)).sum(0).clamp_min(0)


def combined(factors: Sequence[LowRankFactor], weights: Sequence[float]) -> LowRankFactor:
    """`sum_t w_t M_t`, exactly: its rank is the sum of the ranks, in float64."""
    joint = torch.cat([wide(factor.vectors) for factor in factors], 1)
    span, _ = torch.linalg.qr(joint)
    core = span.new_zeros(span.shape[1], span.shape[1])
    rest = span.new_zeros(())
    for factor, weight in zip(factors, weights, strict=True):
        along = span.mT @ wide(factor.vectors)
        core += weight * (along * wide(factor.excess)) @ along.mT
        rest += weight * wide(factor.rest)
    values, turn = torch.linalg.eigh(0.5 * (core + core.mT))
    return LowRankFactor(span @ turn, (values + rest).clamp_min(0), rest)
