"""Coordinates in which an operator is diagonal.

Their `project` and `unproject` are all that sampling, log-determinants and functional variances
need.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from posthoc_bhpeft.errors import NonFiniteError
from posthoc_bhpeft.linalg.completed import CompletedBasis
from posthoc_bhpeft.linalg.lowrank import Factor, LowRankFactor
from posthoc_bhpeft.linalg.precision import wide
from posthoc_bhpeft.linalg.threads import eigh

Vectors = Tensor | CompletedBasis
"""Orthonormal (or unit) columns of one side, formed or not."""


class Eigenbasis(Protocol):
    """Unit vectors, the columns of `Q`, in which an operator `H` is diagonal: `Q^T H Q = diag(l)`.

    `H ~ Q^-T diag(l) Q^-1`, and with an isotropic floor `d` under it the covariance is taken to be
    `Q diag(1 / (l + d)) Q^T`. The basis of a single operator is orthonormal (`log_volume` is 0) and
    both are exact; for sums see `OperatorSum.decompose`.
    """

    @property
    def eigenvalues(self) -> Tensor:
        """Non-negative `l`, `(p, q)`, float64; of an orthonormal basis, the eigenvalues."""
        ...

    @property
    def log_volume(self) -> float:
        """`log |det Q|`, so that `log det(H + d I) ~ sum log(l + d) - 2 log_volume`; at most 0."""
        ...

    def project(self, matrix: Tensor) -> Tensor:
        """`Q^T vec(X)` for gradients `(..., p, q)`."""
        ...

    def unproject(self, coordinates: Tensor) -> Tensor:
        """`Q vec(C)` for `(..., p, q)`; the transpose of `project`, its inverse if orthonormal."""
        ...


@dataclass(frozen=True)
class KroneckerEigenbasis:
    """`X -> U^T X V`: `Q = U (x) V` for `left_vectors` U `(p, p)` and `right_vectors` V `(q, q)`.

    Attributes:
        eigenvalues: `(p, q)`.
        left_vectors: Unit vectors in columns; of a factor in low rank, completed but not formed.
        right_vectors: As `left_vectors`.
        log_volume: `q log |det U| + p log |det V|`; 0 where both are orthonormal.
    """

    eigenvalues: Tensor
    left_vectors: Vectors
    right_vectors: Vectors
    log_volume: float = 0.0

    def project(self, matrix: Tensor) -> Tensor:
        left, right = self.left_vectors.to(matrix), self.right_vectors.to(matrix)
        if matrix.shape[-2] > matrix.shape[-1]:
            # The larger side last: there, all rows of all matrices are one product.
            return projected_left(projected(matrix.mT, left), right).mT
        return projected(projected_left(matrix, left), right)

    def unproject(self, coordinates: Tensor) -> Tensor:
        left, right = self.left_vectors.to(coordinates), self.right_vectors.to(coordinates)
        return unprojected(unprojected(coordinates.mT, left).mT, right)


def projected(rows: Tensor, vectors: Vectors) -> Tensor:
    """`X V` for rows `(..., n)`."""
    return vectors.project(rows) if isinstance(vectors, CompletedBasis) else rows @ vectors


def projected_left(columns: Tensor, vectors: Vectors) -> Tensor:
    """`V^T X` for `(..., n, m)`."""
    if isinstance(vectors, CompletedBasis):
        return vectors.project(columns.mT).mT
    return vectors.T @ columns


def unprojected(rows: Tensor, vectors: Vectors) -> Tensor:
    """`X V^T` for rows `(..., n)`."""
    return vectors.unproject(rows) if isinstance(vectors, CompletedBasis) else rows @ vectors.T


@dataclass(frozen=True)
class IdentityEigenbasis:
    """The standard basis, for diagonal operators."""

    eigenvalues: Tensor

    @property
    def log_volume(self) -> float:
        return 0.0

    def project(self, matrix: Tensor) -> Tensor:
        return matrix

    def unproject(self, coordinates: Tensor) -> Tensor:
        return coordinates


@dataclass(frozen=True)
class DenseEigenbasis:
    """`vec(X) -> Q^T vec(X)` for orthonormal `vectors` Q of shape `(p q, p q)`."""

    eigenvalues: Tensor
    vectors: Tensor

    @property
    def log_volume(self) -> float:
        return 0.0

    def project(self, matrix: Tensor) -> Tensor:
        return (matrix.flatten(-2) @ self.vectors.to(matrix)).reshape(matrix.shape)

    def unproject(self, coordinates: Tensor) -> Tensor:
        flat = coordinates.flatten(-2) @ self.vectors.to(coordinates).T
        return flat.reshape(coordinates.shape)


def symmetric_eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (ascending, clamped at zero) and eigenvectors of a PSD matrix, in float64.

    Factors are sums of outer products in single precision, so their smallest eigenvalues can come
    out slightly negative; as variances divide by `eigenvalue + precision` these are set to zero.

    Args:
        matrix: Symmetric positive semi-definite, `(n, n)`.

    Returns:
        Eigenvalues `(n,)` in float64, and eigenvectors in columns `(n, n)` in the matrix's dtype.

    Raises:
        NonFiniteError: If the matrix holds NaN or infinity.
    """
    require_finite(matrix)
    double = wide(matrix)
    values, vectors = eigh(0.5 * (double + double.T))
    return values.clamp_min(0), vectors.to(matrix)


def factor_eigenbasis(factor: Factor) -> tuple[Tensor, Vectors]:
    """Eigenvalues `(n,)` in float64 and eigenvectors of one side of a Kronecker product.

    Raises:
        NonFiniteError: If it holds NaN or infinity.
    """
    if not isinstance(factor, LowRankFactor):
        return symmetric_eigh(factor)
    require_finite(factor)
    n_others = factor.shape[0] - len(factor.values)
    values = torch.cat([wide(factor.values), wide(factor.rest).expand(n_others)])
    return values.clamp_min(0), CompletedBasis.of(factor.vectors)


def require_finite(matrix: Factor) -> None:
    """Raise if a factor holds NaN or infinity.

    Raises:
        NonFiniteError: With the shape of the factor.
    """
    if not torch.isfinite(matrix.trace()) or not torch.isfinite(stored(matrix)).all():
        raise NonFiniteError(
            f"A curvature factor of shape {tuple(matrix.shape)} holds NaN or infinity. "
            "The gradients of the model overflowed: run the fit in float32 or bfloat16."
        )


def stored(factor: Factor) -> Tensor:
    """The larger of the tensors that a factor is made of."""
    return factor.vectors if isinstance(factor, LowRankFactor) else factor
