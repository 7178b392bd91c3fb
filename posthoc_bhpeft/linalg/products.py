r"""Operators on a product `M = B A`, seen from `M` and from either factor.

`B` is `(p, r)`, `A` is `(r, q)`, and `r` is small beside both sides of `M`. Nothing here depends on
how the product is split: `B Q` and `Q^-1 A` are the same `M`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from posthoc_bhpeft.linalg.lowrank import cast
from posthoc_bhpeft.linalg.operators import (
    BlockOperator,
    DenseOperator,
    DiagonalOperator,
    KroneckerOperator,
)
from posthoc_bhpeft.linalg.sums import OperatorSum


def quadratic_form(operator: BlockOperator, left: Tensor, right: Tensor) -> Tensor:
    r"""`vec(U V)^T H vec(U V)` for `left` U `(p, k)` and `right` V `(k, q)`; exact.

    A Kronecker term never makes `U V`, since `tr(V^T U^T L U V R) = <U^T L U, V R V^T>`: that is
    `O(k (p^2 + q^2))` instead of `O(p q (p + q))`.

    Returns:
        A scalar, differentiable in both.
    """
    if isinstance(operator, OperatorSum):
        return torch.stack([quadratic_form(term, left, right) for term in operator.terms]).sum()
    if isinstance(operator, KroneckerOperator):
        inner = left.mT @ (cast(operator.left, left) @ left)
        outer = right @ cast(operator.right, right) @ right.mT
        return (inner * outer).sum()
    product = left @ right
    return (product * operator.matvec(product)).sum()


def pulled_to_right(operator: BlockOperator, left: Tensor) -> BlockOperator:
    r"""`X -> B^T H(B X)`, what `H` on `M` is for the factor `A` while `B`, here `left`, stands.

    `L (x) R` becomes `(B^T L B) (x) R`, and a dense matrix stays exact as well. Of a diagonal one
    the result is not diagonal; its diagonal `(B * B)^T D` is kept.
    """
    if isinstance(operator, OperatorSum):
        return OperatorSum(tuple(pulled_to_right(term, left) for term in operator.terms))
    if isinstance(operator, KroneckerOperator):
        narrow = left.to(device=operator.left.device, dtype=operator.left.dtype)
        return KroneckerOperator(narrow.mT @ operator.left @ narrow, operator.right)
    if isinstance(operator, DiagonalOperator):
        return DiagonalOperator(left.to(operator.diagonal).square().mT @ operator.diagonal)
    matrix, (_, q) = operator.dense(), operator.shape
    chain = torch.kron(left.to(matrix), torch.eye(q).to(matrix))
    return DenseOperator(chain.mT @ matrix @ chain, left.shape[1])


def pulled_to_left(operator: BlockOperator, right: Tensor) -> BlockOperator:
    r"""`X -> H(X A) A^T`, what `H` on `M` is for the factor `B` while `A`, here `right`, stands.

    `L (x) R` becomes `L (x) (A R A^T)`; of a diagonal one the diagonal `D (A * A)^T` is kept.
    """
    if isinstance(operator, OperatorSum):
        return OperatorSum(tuple(pulled_to_left(term, right) for term in operator.terms))
    if isinstance(operator, KroneckerOperator):
        narrow = right.to(device=operator.right.device, dtype=operator.right.dtype)
        return KroneckerOperator(operator.left, narrow @ operator.right @ narrow.mT)
    if isinstance(operator, DiagonalOperator):
        return DiagonalOperator(operator.diagonal @ right.to(operator.diagonal).square().mT)
    matrix, (p, _) = operator.dense(), operator.shape
    chain = torch.kron(torch.eye(p).to(matrix), right.to(matrix).mT.contiguous())
    return DenseOperator(chain.mT @ matrix @ chain, p)
