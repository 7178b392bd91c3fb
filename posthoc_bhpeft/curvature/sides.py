"""The two sides of a Kronecker product while data go by: a whole matrix, or a sketch of a wide one.

Both are plain sums over data, so that parts of the data can be summed apart and added up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from posthoc_bhpeft.linalg import Factor, from_sketch

OVERSAMPLING = 2
"""Columns of a sketch for each vector that is kept, as its authors advise."""


class Side(Protocol):
    """`M = sum_n u_n v_n^T` `(n, n)`, symmetric positive semi-definite."""

    @property
    def size(self) -> int:
        """`n`."""
        ...

    @property
    def columns(self) -> int:
        """Of what is kept of it: `n`, or fewer."""
        ...

    def add(self, one: Tensor, other: Tensor) -> None:
        """Add vectors `u` and `v`, both `(..., n)`."""
        ...

    def sums(self) -> dict[str, Tensor]:
        """The sums so far by name; empty before the first batch."""
        ...

    def restore(self, sums: Mapping[str, Tensor]) -> None:
        """Take these sums in place of its own."""
        ...

    def finish(self) -> Factor:
        """The factor; its sums are given up."""
        ...


class FullSide:
    """`M` itself, `(n, n)`."""

    def __init__(self, size: int) -> None:
        self.size = self.columns = size
        self.total: Tensor | None = None

    def add(self, one: Tensor, other: Tensor) -> None:
        self.total = add_products(self.total, one, other)

    def sums(self) -> dict[str, Tensor]:
        return present(total=self.total)

    def restore(self, sums: Mapping[str, Tensor]) -> None:
        self.total = sums["total"]

    def finish(self) -> Factor:
        total, self.total = required(self.total), None
        return total


class SketchedSide:
    """`Y = M O` `(n, l)` for a random `O`, and the trace of `M`; `M` is never formed.

    Args:
        size: `n`.
        rank: `k`, vectors to keep; `l = 2 k`.
    """

    def __init__(self, size: int, rank: int) -> None:
        # The same in every fit and every process, so that sums of them mean something.
        drawn = torch.randn(size, OVERSAMPLING * rank, generator=torch.Generator().manual_seed(0))
        # In half precision, to be small; it may be any random matrix, if always the same.
        self.test = drawn.half()
        self.size, self.columns = self.test.shape
        self.rank = rank
        self.image: Tensor | None = None
        self.trace: Tensor | None = None

    def add(self, one: Tensor, other: Tensor) -> None:
        self.test = self.test.to(other.device)
        self.image = add_products(self.image, one, other @ self.test.to(other))
        trace = (one * other).sum()
        self.trace = trace if self.trace is None else self.trace + trace

    def sums(self) -> dict[str, Tensor]:
        return present(image=self.image, trace=self.trace)

    def restore(self, sums: Mapping[str, Tensor]) -> None:
        self.image, self.trace = sums["image"], sums["trace"]

    def finish(self) -> Factor:
        image, self.image = required(self.image), None
        return from_sketch(image, self.test.to(image), required(self.trace), self.rank)


def add_products(total: Tensor | None, one: Tensor, other: Tensor) -> Tensor:
    """`total + sum_n u_n v_n^T` for vectors `(..., d)`; a total is added to in place."""
    u, v = one.reshape(-1, one.shape[-1]), other.reshape(-1, other.shape[-1])
    if total is None:
        return u.T @ v
    if len(u) > len(total):
        # Apart first. A kernel for a small result adds vector by vector to the sum itself, and what
        # is small beside it is rounded away: after 400 batches of 6,144 vectors 0.2 % was missing
        # in single precision, measured.
        return total.add_(u.T @ v)
    return total.addmm_(u.T, v)


def present(**totals: Tensor | None) -> dict[str, Tensor]:
    """Those sums that at least one batch was added to."""
    return {name: total for name, total in totals.items() if total is not None}


def required(total: Tensor | None) -> Tensor:
    """A sum that at least one batch was added to."""
    if total is None:
        raise RuntimeError("finish() before any add(): the fit saw no batch")
    return total
