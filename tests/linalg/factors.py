"""Random positive semi-definite factors and operators for the tests of the algebra."""

from __future__ import annotations

import torch
from torch import Tensor

from posthoc_bhpeft.linalg import DenseOperator, DiagonalOperator, KroneckerOperator
from tests.models import seeded


def psd(size: int, rank: int | None = None, seed: int = 0) -> Tensor:
    """`(size, size)` in float64, of full rank by default."""
    root = torch.randn(size, rank or size, generator=seeded(seed), dtype=torch.float64)
    return root @ root.T


def kronecker(p: int, q: int, seed: int = 0, rank: int | None = None) -> KroneckerOperator:
    """Random factors, of `rank` each."""
    return KroneckerOperator(psd(p, rank, 2 * seed), psd(q, rank, 2 * seed + 1))


def diagonal(p: int, q: int, seed: int = 0) -> DiagonalOperator:
    """Random non-negative entries."""
    return DiagonalOperator(torch.rand(p, q, generator=seeded(seed), dtype=torch.float64))


def dense(p: int, q: int, seed: int = 0) -> DenseOperator:
    """A random full matrix."""
    return DenseOperator(psd(p * q, seed=seed), p)
