"""Symmetric positive semi-definite operators on `(p, q)` matrices.

Every operator acts on `vec(X)` with **row-major** `vec` (torch's `flatten`), so that
`(L (x) R) vec(X) = vec(L X R^T)`. Much of the K-FAC literature stacks columns; there the same
operator is written `R (x) L`.

Three structures share one contract, `BlockOperator`; `OperatorSum` adds them up. `+` is defined on
none: `L1 (x) R1 + L2 (x) R2` is not `(L1 + L2) (x) (R1 + R2)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from posthoc_bhpeft.linalg.eigen import (
    DenseEigenbasis,
    Eigenbasis,
    IdentityEigenbasis,
    KroneckerEigenbasis,
    factor_eigenbasis,
    symmetric_eigh,
)
from posthoc_bhpeft.linalg.lowrank import Factor, LowRankFactor, cast, full


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
        """A basis of unit vectors in which the operator is diagonal."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that define it, by field name, for saving."""
        ...


@dataclass(frozen=True)
class KroneckerOperator:
    """`L (x) R`: `X -> L X R` for symmetric `left` `(p, p)` and `right` `(q, q)`.

    Attributes:
        left: A matrix, or a wide one in low rank.
        right: As `left`.
    """

    left: Factor
    right: Factor

    @property
    def shape(self) -> tuple[int, int]:
        return self.left.shape[0], self.right.shape[0]

    def matvec(self, matrix: Tensor) -> Tensor:
        # Factors may be kept on another device than the model, or in another precision.
        return cast(self.left, matrix) @ matrix @ cast(self.right, matrix)

    def trace(self) -> Tensor:
        return self.left.trace() * self.right.trace()

    def dense(self) -> Tensor:
        return torch.kron(full(self.left), full(self.right))

    def scale(self, factor: float) -> KroneckerOperator:
        return KroneckerOperator(self.left * factor, self.right)

    def decompose(self) -> Eigenbasis:
        left_values, left_vectors = factor_eigenbasis(self.left)
        right_values, right_vectors = factor_eigenbasis(self.right)
        values = torch.outer(left_values, right_values)
        return KroneckerEigenbasis(values, left_vectors, right_vectors)

    def tensors(self) -> dict[str, Tensor]:
        return {**factor_tensors("left", self.left), **factor_tensors("right", self.right)}


def factor_tensors(side: str, factor: Factor) -> dict[str, Tensor]:
    """The tensors of one side: itself, or `left_vectors`, `left_values` and `left_rest`."""
    if not isinstance(factor, LowRankFactor):
        return {side: factor}
    parts = {"vectors": factor.vectors, "values": factor.values, "rest": factor.rest}
    return {f"{side}_{name}": tensor for name, tensor in parts.items()}


def factor_of(side: str, tensors: Mapping[str, Tensor]) -> Factor:
    """One side from the tensors of `factor_tensors`.

    Raises:
        KeyError: If one is missing.
    """
    if side in tensors:
        return tensors[side]
    return LowRankFactor(*(tensors[f"{side}_{part}"] for part in ("vectors", "values", "rest")))


@dataclass(frozen=True)
class DiagonalOperator:
    """`X -> D * X` element by element, for `diagonal` of shape `(p, q)`."""

    diagonal: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.diagonal.shape[0], self.diagonal.shape[1]

    def matvec(self, matrix: Tensor) -> Tensor:
        # As above: another device, another precision.
        return self.diagonal.to(matrix) * matrix

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
        return (matrix.flatten(-2) @ self.matrix.to(matrix)).reshape(matrix.shape)

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
