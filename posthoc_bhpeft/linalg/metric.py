r"""`Metric`: `<G, H> = vec(G)^T Sigma vec(H)` of gradients `(p, q)` under one block's covariance.

With `Sigma = Q diag(s) Q^T`, `s = 1 / (l + d)`, the exact one takes all coordinates `Q^T vec(G)`.
Yet along most eigenvectors of a wide side data say nothing: `l` is far below `d`, and `s` is the
prior's `1 / d`. Where all of a column's `s` are within `1 + t` of the largest, one number `c`
stands for them, so that only the other columns are projected on:

    <G, H> ~ c tr(G^T H) - sum_{ij, j kept} (c - s_ij) (U^T G V)_ij (U^T H V)_ij

`c = max(s) (1 + t / 2) / (1 + t)` is within `t / 2` of every `s` left out, relative, and what is
left out is positive semi-definite, so that for every set of gradients the matrix of their `<G, H>`
lies between `1 - t / 2` and `1 + t / 2` times the exact one.

Where a gradient lies in the kept columns the two terms nearly cancel, and rounding is up to
`c / min(s)` times as large as in their difference. Where that could be more than `t / 4`, the same
is computed without a difference, from what is left of gradients beside those columns:

    <G, H> ~ c tr(G_r^T H_r) + sum_{ij, j kept} s_ij (U^T G V)_ij (U^T H V)_ij,
    G_r = G - (G V_k) V_k^T
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from posthoc_bhpeft.linalg.completed import CompletedBasis
from posthoc_bhpeft.linalg.eigen import Eigenbasis, KroneckerEigenbasis

WIDE = 128
"""Sides narrower than this are projected on whole: there is nothing to gain."""

Part = tuple[float, Tensor]
"""A weight and vectors `(N, n)`."""


class Metric(Protocol):
    """Gradients as vectors whose weighted inner products are `<G, H>`."""

    def parts(self, gradient: Tensor) -> tuple[Part, ...]:
        """Parts of gradients `(N, p, q)`."""
        ...


def inner(one: tuple[Part, ...], other: tuple[Part, ...]) -> Tensor:
    """`<G_n, H_n>` `(N,)` from the parts of both."""
    products = [
        weight * torch.linalg.vecdot(mine, theirs)
        for (weight, mine), (_, theirs) in zip(one, other, strict=True)
    ]
    return torch.stack(products).sum(0)


@dataclass(frozen=True)
class WholeMetric:
    """`<G, H>` by all coordinates.

    Attributes:
        basis: In which `Sigma` is diagonal.
        deviations: `sqrt(s)` `(p, q)`.
    """

    basis: Eigenbasis
    deviations: Tensor

    def parts(self, gradient: Tensor) -> tuple[Part, ...]:
        whitened = self.basis.project(gradient) * self.deviations.to(gradient)
        return ((1.0, whitened.flatten(1)),)


@dataclass(frozen=True)
class NarrowMetric:
    """`<G, H>` by few columns of the right side, `c` standing for the others.

    Attributes:
        common: `c`.
        left: `U` `(p, p)`.
        right: The columns of `V` that are kept, `(q, k)`.
        roots: `sqrt(c - s)` of them, `(p, k)`, 0 where `s` is a little above `c`; `sqrt(s)` if
            `apart`.
        transposed: Whether all this is about `G^T`, the wide side being the left one.
        apart: Whether the kept columns are taken out of gradients, rather than subtracted.
    """

    common: float
    left: Tensor
    right: Tensor
    roots: Tensor
    transposed: bool
    apart: bool

    def parts(self, gradient: Tensor) -> tuple[Part, ...]:
        turned, right = gradient.mT if self.transposed else gradient, self.right.to(gradient)
        columns = turned @ right
        kept = (self.left.to(gradient).T @ columns * self.roots.to(gradient)).flatten(1)
        if self.apart:
            return (self.common, (turned - columns @ right.T).flatten(1)), (1.0, kept)
        return (self.common, gradient.flatten(1)), (-1.0, kept)


def metric_of(basis: Eigenbasis, variances: Tensor, tolerance: float) -> Metric:
    """The metric of a block with as few columns as a tolerance allows.

    Args:
        basis: In which the covariance is diagonal.
        variances: `s` `(p, q)`.
        tolerance: `t`; with 0 all columns are kept.
    """
    transposed = variances.shape[0] > variances.shape[1]
    s = variances.T if transposed else variances
    kept = (s.amin(0) < s.max() / (1 + tolerance)).nonzero().flatten()
    sides = orthonormal_sides(basis, transposed)
    if sides is None or tolerance <= 0 or s.shape[1] < WIDE or 2 * len(kept) > s.shape[1]:
        return WholeMetric(basis, variances.sqrt())
    left, right = sides
    if isinstance(right, CompletedBasis):
        if len(kept) and int(kept[-1]) >= right.vectors.shape[1]:
            return WholeMetric(basis, variances.sqrt())
        right = right.vectors
    common = float(s.max()) * (1 + tolerance / 2) / (1 + tolerance)
    apart = torch.finfo(left.dtype).eps * common > tolerance / 4 * float(s.min())
    roots = (s[:, kept] if apart else (common - s[:, kept]).clamp_min(0)).sqrt()
    return NarrowMetric(common, left, right[:, kept.to(right.device)], roots, transposed, apart)


def orthonormal_sides(
    basis: Eigenbasis, transposed: bool
) -> tuple[Tensor, Tensor | CompletedBasis] | None:
    """Both sides of an orthonormal Kronecker eigenbasis, the narrower first; `None` of others."""
    if not isinstance(basis, KroneckerEigenbasis) or basis.log_volume:
        return None
    sides = (basis.left_vectors, basis.right_vectors)
    narrow, broad = reversed(sides) if transposed else sides
    return None if isinstance(narrow, CompletedBasis) else (narrow, broad)
