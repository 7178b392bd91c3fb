"""Symmetric positive semi-definite operators on `(p, q)` matrices, and their eigendecompositions.

Every operator acts on `vec(X)` with **row-major** `vec` (torch's `flatten`), so that
`(L (x) R) vec(X) = vec(L X R^T)`. Much of the K-FAC literature stacks columns; there the same
operator is written `R (x) L`.

Nothing here knows of modules, data or probability. Three structures share one contract
(`BlockOperator`); the eigenbasis of each is an `Eigenbasis`, whose `project` and `unproject` are
all that sampling, log-determinants and functional variances need.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from posthoc_bhpeft.errors import NonFiniteError


class BlockOperator(Protocol):
    """A symmetric positive semi-definite map on `(p, q)` matrices."""

    @property
    def shape(self) -> tuple[int, int]:
        """The shape `(p, q)` of the matrices it acts on."""
        ...

    def matvec(self, matrix: Tensor) -> Tensor:
        """Apply to a matrix of shape `(..., p, q)`; exact."""
        ...

    def trace(self) -> Tensor:
        """The trace, a scalar tensor."""
        ...

    def dense(self) -> Tensor:
        """The `(p q, p q)` matrix in row-major order; for small blocks and tests."""
        ...

    def scale(self, factor: float) -> BlockOperator:
        """The operator times a non-negative number."""
        ...

    def decompose(self) -> Eigenbasis:
        """Orthonormal eigenbasis and eigenvalues."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that define it, by field name, for saving."""
        ...


@dataclass(frozen=True)
class KroneckerOperator:
    """`L (x) R`: `X -> L X R` for symmetric `left` `(p, p)` and `right` `(q, q)`."""

    left: Tensor
    right: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.left.shape[0], self.right.shape[0]

    def matvec(self, matrix: Tensor) -> Tensor:
        return self.left @ matrix @ self.right

    def trace(self) -> Tensor:
        return self.left.trace() * self.right.trace()

    def dense(self) -> Tensor:
        return torch.kron(self.left, self.right)

    def scale(self, factor: float) -> KroneckerOperator:
        return KroneckerOperator(self.left * factor, self.right)

    def decompose(self) -> Eigenbasis:
        left_values, left_vectors = symmetric_eigh(self.left)
        right_values, right_vectors = symmetric_eigh(self.right)
        values = torch.outer(left_values, right_values)
        return KroneckerEigenbasis(values, left_vectors, right_vectors)

    def tensors(self) -> dict[str, Tensor]:
        return {"left": self.left, "right": self.right}


@dataclass(frozen=True)
class DiagonalOperator:
    """`X -> D * X` element by element, for `diagonal` of shape `(p, q)`."""

    diagonal: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.diagonal.shape[0], self.diagonal.shape[1]

    def matvec(self, matrix: Tensor) -> Tensor:
        return self.diagonal * matrix

    def trace(self) -> Tensor:
        return self.diagonal.sum()

    def dense(self) -> Tensor:
        return torch.diag(self.diagonal.flatten())

    def scale(self, factor: float) -> DiagonalOperator:
        return DiagonalOperator(self.diagonal * factor)

    def decompose(self) -> Eigenbasis:
        return IdentityEigenbasis(self.diagonal.double().clamp_min(0))

    def tensors(self) -> dict[str, Tensor]:
        return {"diagonal": self.diagonal}


@dataclass(frozen=True)
class DenseOperator:
    """A full `(p q, p q)` matrix acting on row-major `vec(X)` for `X` of shape `(p, q)`."""

    matrix: Tensor
    rows: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows, self.matrix.shape[0] // self.rows

    def matvec(self, matrix: Tensor) -> Tensor:
        return (matrix.flatten(-2) @ self.matrix).reshape(matrix.shape)

    def trace(self) -> Tensor:
        return self.matrix.trace()

    def dense(self) -> Tensor:
        return self.matrix

    def scale(self, factor: float) -> DenseOperator:
        return DenseOperator(self.matrix * factor, self.rows)

    def decompose(self) -> Eigenbasis:
        values, vectors = symmetric_eigh(self.matrix)
        return DenseEigenbasis(values.reshape(self.shape), vectors)

    def tensors(self) -> dict[str, Tensor]:
        return {"matrix": self.matrix}


class Eigenbasis(Protocol):
    """Orthonormal coordinates in which an operator is diagonal with `eigenvalues` `(p, q)`."""

    @property
    def eigenvalues(self) -> Tensor:
        """Non-negative eigenvalues `(p, q)`, float64."""
        ...

    def project(self, matrix: Tensor) -> Tensor:
        """Coordinates `(..., p, q)` of matrices `(..., p, q)` in the eigenbasis."""
        ...

    def unproject(self, coordinates: Tensor) -> Tensor:
        """The inverse (and transpose) of `project`."""
        ...


@dataclass(frozen=True)
class KroneckerEigenbasis:
    """`X -> U^T X V` for `left_vectors` U `(p, p)` and `right_vectors` V `(q, q)`."""

    eigenvalues: Tensor
    left_vectors: Tensor
    right_vectors: Tensor

    def project(self, matrix: Tensor) -> Tensor:
        left, right = self.left_vectors.to(matrix), self.right_vectors.to(matrix)
        if matrix.shape[-2] > matrix.shape[-1]:
            # The larger side last: there, all rows of all matrices are one product.
            return (right.T @ (matrix.mT @ left)).mT
        return left.T @ matrix @ right

    def unproject(self, coordinates: Tensor) -> Tensor:
        left, right = self.left_vectors.to(coordinates), self.right_vectors.to(coordinates)
        return left @ coordinates @ right.T


@dataclass(frozen=True)
class IdentityEigenbasis:
    """The standard basis, for diagonal operators."""

    eigenvalues: Tensor

    def project(self, matrix: Tensor) -> Tensor:
        return matrix

    def unproject(self, coordinates: Tensor) -> Tensor:
        return coordinates


@dataclass(frozen=True)
class DenseEigenbasis:
    """`vec(X) -> Q^T vec(X)` for `vectors` Q of shape `(p q, p q)`."""

    eigenvalues: Tensor
    vectors: Tensor

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
    if not torch.isfinite(matrix).all():
        raise NonFiniteError(
            f"A curvature factor of shape {tuple(matrix.shape)} holds NaN or infinity. "
            "The gradients of the model overflowed: run the fit in float32 or bfloat16."
        )
    # Decomposed in float64 on the factor's own device where it has float64 (MPS has not).
    wide = matrix.cpu() if matrix.device.type == "mps" else matrix
    values, vectors = torch.linalg.eigh(0.5 * (wide + wide.T).double())
    return values.clamp_min(0).to(wide.device), vectors.to(matrix)
