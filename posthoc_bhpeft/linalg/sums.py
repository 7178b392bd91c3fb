"""`OperatorSum`: several operators on one block, none of them merged or approximated."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.linalg.eigen import Eigenbasis
from posthoc_bhpeft.linalg.joint import joint_eigenbasis
from posthoc_bhpeft.linalg.lowrank import full
from posthoc_bhpeft.linalg.operators import (
    BlockOperator,
    DenseOperator,
    DiagonalOperator,
    KroneckerOperator,
)


@dataclass(frozen=True)
class OperatorSum:
    """`H_1 + ... + H_k`: exact in everything but, for several Kronecker terms, `decompose`.

    Attributes:
        terms: One or more, of one shape; sums among them are taken apart.

    Raises:
        ConfigError: If there is no term, or their shapes differ.
    """

    terms: tuple[BlockOperator, ...]

    def __post_init__(self) -> None:
        flat = tuple(flattened(self.terms))
        if not flat:
            raise ConfigError("A sum of operators has no term; give one or more.")
        shapes = sorted({term.shape for term in flat})
        if len(shapes) > 1:
            raise ConfigError(
                f"The terms of a sum act on matrices of different shapes, {shapes}. A block that "
                "has grown needs its older terms grown too: grow_rows(operator, p)."
            )
        object.__setattr__(self, "terms", flat)

    @property
    def shape(self) -> tuple[int, int]:
        return self.terms[0].shape

    def matvec(self, matrix: Tensor) -> Tensor:
        total = self.terms[0].matvec(matrix)
        for term in self.terms[1:]:
            total = total + term.matvec(matrix)
        return total

    def trace(self) -> Tensor:
        return torch.stack([term.trace() for term in self.terms]).sum()

    def dense(self) -> Tensor:
        total = self.terms[0].dense()
        for term in self.terms[1:]:
            total = total + term.dense()
        return total

    def scale(self, factor: float) -> OperatorSum:
        return OperatorSum(tuple(term.scale(factor) for term in self.terms))

    def tensors(self) -> dict[str, Tensor]:
        return {
            f"{index}.{name}": tensor
            for index, term in enumerate(self.terms)
            for name, tensor in term.tensors().items()
        }

    def decompose(self, floor: float = 0.0) -> Eigenbasis:
        """A basis of unit vectors in which the sum is diagonal, or nearly so.

        Exact for one term, for diagonal terms, with a dense one among them (or one of another kind,
        made dense), and for two Kronecker terms without a floor. Otherwise `joint_eigenbasis`:
        what the terms and the floor leave off the diagonal is dropped.

        Args:
            floor: `d` of the isotropic term that is to stand under the sum.

        Raises:
            NonFiniteError: If a factor holds NaN or infinity.
        """
        if len(self.terms) == 1:
            return self.terms[0].decompose()
        diagonals, kroneckers, others = by_structure(self.terms)
        if others:
            return DenseOperator(self.dense(), self.shape[0]).decompose()
        if not kroneckers:
            return sum_of_diagonals(diagonals).decompose()
        return joint_eigenbasis([*kroneckers, *diagonals], floor)


def flattened(terms: Iterable[BlockOperator]) -> Iterable[BlockOperator]:
    """The terms, those of sums among them in the place of the sum."""
    for term in terms:
        if isinstance(term, OperatorSum):
            yield from term.terms
        else:
            yield term


def by_structure(
    terms: Iterable[BlockOperator],
) -> tuple[list[DiagonalOperator], list[KroneckerOperator], list[BlockOperator]]:
    """Diagonal terms, Kronecker terms and all others."""
    diagonals: list[DiagonalOperator] = []
    kroneckers: list[KroneckerOperator] = []
    others: list[BlockOperator] = []
    for term in terms:
        if isinstance(term, DiagonalOperator):
            diagonals.append(term)
        elif isinstance(term, KroneckerOperator):
            kroneckers.append(term)
        else:
            others.append(term)
    return diagonals, kroneckers, others


def sum_of_diagonals(terms: Iterable[DiagonalOperator]) -> DiagonalOperator:
    """One diagonal operator, exact."""
    return DiagonalOperator(torch.stack([term.diagonal for term in terms]).sum(0))


def grow_rows(operator: BlockOperator, p_new: int) -> BlockOperator:
    """The operator for a block with more rows, zero on the new ones; they come last.

    A head that meets new labels grows so: nothing is known yet of the new rows.

    Args:
        operator: Kronecker, diagonal, dense or a sum of those.
        p_new: Rows of the grown block, at least the operator's own.

    Raises:
        ConfigError: If the block would shrink, or the operator is of another kind.
    """
    p, q = operator.shape
    if p_new < p:
        raise ConfigError(
            f"An operator on {p} rows cannot be grown to {p_new}; rows can only be added."
        )
    if p_new == p:
        return operator
    new = p_new - p
    if isinstance(operator, OperatorSum):
        return OperatorSum(tuple(grow_rows(term, p_new) for term in operator.terms))
    if isinstance(operator, KroneckerOperator):
        # Rows are classes, few enough for a factor of them in low rank to be made full.
        return KroneckerOperator(padded(full(operator.left), new, new), operator.right)
    if isinstance(operator, DiagonalOperator):
        return DiagonalOperator(padded(operator.diagonal, new, 0))
    if isinstance(operator, DenseOperator):
        return DenseOperator(padded(operator.matrix, new * q, new * q), p_new)
    raise ConfigError(
        f"grow_rows knows Kronecker, diagonal and dense operators and their sums, got "
        f"{type(operator).__name__}. Grow it where it is made."
    )


def padded(matrix: Tensor, rows: int, columns: int) -> Tensor:
    """Zeros after the last row and the last column."""
    return torch.nn.functional.pad(matrix, (0, columns, 0, rows))
