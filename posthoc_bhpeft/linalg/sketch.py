"""`CountSketch`: long vectors made short, their inner products kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class CountSketch:
    r"""A random map from `P` numbers to `k`, one addition each.

        S(x)_b = sum_{i : h(i) = b} s_i x_i,    h(i) uniform in 1..k,   s_i = +1 or -1

    `E S(x)^T S(y) = x^T y`, with a variance of at most `2 |x|^2 |y|^2 / k` (Charikar et al. 2002,
    https://doi.org/10.1007/3-540-45465-9_59; Weinberger et al. 2009,
    https://arxiv.org/abs/0902.2206). Where `P <= k` nothing is mapped, and products are exact.

    Attributes:
        buckets: `h`, `(P,)`, or `None` where vectors stay as they are.
        signs: `s`, `(P,)`, or `None`.
        size: `k`, or `P` where nothing is mapped.
    """

    buckets: Tensor | None
    signs: Tensor | None
    size: int

    @classmethod
    def make(cls, length: int, size: int, generator: torch.Generator) -> CountSketch:
        """A sketch of vectors of `length` numbers to at most `size`, drawn on the CPU."""
        if length <= size:
            return cls(None, None, length)
        buckets = torch.randint(size, (length,), generator=generator)
        signs = 1 - 2 * torch.randint(2, (length,), generator=generator, dtype=torch.int8)
        return cls(buckets.int(), signs, size)

    def to(self, device: torch.device) -> CountSketch:
        """The same sketch for rows on a device."""
        if self.buckets is None or self.signs is None:
            return self
        return CountSketch(self.buckets.to(device), self.signs.to(device), self.size)

    def __call__(self, rows: Tensor) -> Tensor:
        """Rows `(R, P)` to `(R, k)`, on the sketch's device."""
        short = rows.new_zeros(len(rows), self.size)
        self.add(short, rows, slice(None))
        return short

    def add(self, short: Tensor, rows: Tensor, place: slice) -> None:
        """Add to sketches `(R, k)` what a part of the long vectors comes to.

        Args:
            short: Changed in place.
            rows: `(R, p)`.
            place: Of these `p` numbers among all `P`.
        """
        if self.buckets is None or self.signs is None:
            short[:, place] += rows
        else:
            short.index_add_(1, self.buckets[place], rows * self.signs[place])
