r"""Bytes of one block's curvature: while data go by, while it is decomposed, at rest, in a file.

A whole side of width `n` is a sum of `n^2` numbers. To decompose it takes up to six copies of it in
float64, and on a processor narrow ones are decomposed several at once; at rest it stands beside its
eigenvectors. A side in low rank `k` is a sketch of `2 k` columns, and as many in half precision to
make it with; at rest `k` columns are left, which serve as eigenvectors too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from posthoc_bhpeft.blocks import Kind, Observed
from posthoc_bhpeft.curvature import (
    KFAC,
    Curvature,
    DenseGGN,
    DiagonalGGN,
    KroneckerGGN,
    Placed,
)
from posthoc_bhpeft.curvature.estimator import nested
from posthoc_bhpeft.curvature.placed import PRECISIONS
from posthoc_bhpeft.curvature.sides import OVERSAMPLING
from posthoc_bhpeft.linalg import NARROW

DOUBLE, HALF = 8, 2
DECOMPOSING = 6 * DOUBLE
"""Bytes a number while a matrix is decomposed: itself, made symmetric, LAPACK's copies."""


@dataclass(frozen=True)
class BlockBytes:
    """What one block, or product, takes.

    Attributes:
        name: Of the block.
        kind: What it is part of; `None` for a product.
        shape: `(p, q)`.
        summing: While batches are added up.
        decomposing: For a moment, beside what is at rest.
        resting: Curvature, eigenbasis and weights of the posterior.
        saved: In a file.
    """

    name: str
    kind: Kind | None
    shape: tuple[int, int]
    summing: int
    decomposing: int
    resting: int
    saved: int


def block_bytes(curvature: Curvature, block: Observed, item: int) -> BlockBytes:
    """Bytes of one block.

    Args:
        curvature: The estimator; of one that is not known, `storage` is all that counts.
        block: A block or a product. A product is not decomposed and has no mean of its own.
        item: Bytes of a number: 4, or 8 in float64.
    """
    parts = parts_of(innermost(curvature), curvature, block, item)
    kind: Kind | None = getattr(block, "kind", None)
    summing, decomposing, factors, vectors = (sum(column) for column in zip(*parts, strict=True))
    # The weights' mean; eigenvalues, in float64.
    mean, spectrum = (item * block.size, DOUBLE * block.size) if kind else (0, 0)
    if kind is None:
        decomposing = vectors = 0
    resting = factors + vectors + mean + spectrum
    return BlockBytes(block.name, kind, block.shape, summing, decomposing, resting, factors + mean)


def decomposing(blocks: Sequence[BlockBytes], device: torch.device) -> int:
    """Bytes while blocks are decomposed one by one; narrow ones on a processor several at once."""
    each = sorted((block.decomposing for block in blocks), reverse=True)
    if device.type != "cpu":
        return sum(each[:1])
    at_once = [block.decomposing for block in blocks if is_narrow(block)]
    together = sorted(at_once, reverse=True)[: torch.get_num_threads()]
    return max(sum(each[:1]), sum(together))


def is_narrow(block: BlockBytes) -> bool:
    """Whether its matrices are decomposed on one thread each."""
    return max(block.shape) <= NARROW and block.decomposing <= 2 * DECOMPOSING * NARROW**2


Part = tuple[int, int, int, int]
"""Bytes while summing, while decomposing, of the factor at rest, of its eigenvectors."""


def parts_of(inner: Curvature, whole: Curvature, block: Observed, item: int) -> list[Part]:
    """Of each side of a Kronecker product, or of the one matrix or diagonal."""
    if isinstance(inner, KroneckerGGN):
        return [side(inner, width, item) for width in block.shape]
    if isinstance(inner, KFAC):
        return [matrix(width, item) for width in block.shape]
    if isinstance(inner, DenseGGN):
        return [matrix(block.size, item)]
    if isinstance(inner, DiagonalGGN):
        kept = item * block.size
        return [(kept, 0, kept, 0)]
    kept = item * whole.storage(block)
    return [(kept, 0, kept, kept)]


def side(curvature: KroneckerGGN, width: int, item: int) -> Part:
    """One side of a Kronecker product, whole or in low rank."""
    if curvature.rank is None or not curvature.is_low_rank(width):
        return matrix(width, item)
    kept, columns = width * curvature.rank, OVERSAMPLING * width * curvature.rank
    return (item + HALF) * columns, DECOMPOSING * columns, item * kept, 0


def matrix(width: int, item: int) -> Part:
    """A matrix of `n x n`."""
    return item * width**2, DECOMPOSING * width**2, item * width**2, item * width**2


def innermost(curvature: Curvature) -> Curvature:
    """The last of them, which says what is kept of a block."""
    return list(nested(curvature))[-1]


def placed_on(curvature: Curvature, device: torch.device) -> torch.device:
    """Where sums and factors are: the model's device, unless `Placed` says another."""
    for one in nested(curvature):
        if isinstance(one, Placed) and one.device is not None:
            return torch.device(one.device)
    return device


def item_size(curvature: Curvature, gradients: int) -> int:
    """Bytes of a number in sums: those of gradients, unless `Placed` says others."""
    for one in nested(curvature):
        if isinstance(one, Placed) and one.dtype is not None:
            return PRECISIONS[one.dtype].itemsize
    return gradients
