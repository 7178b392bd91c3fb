r"""An orthonormal basis of which only some columns matter, completed without forming it.

The block reflector of Schreiber and Parlett (1988, https://doi.org/10.1137/0725014): `O(n k)` to
keep and to apply, where the `(n, n)` matrix takes `O(n^2)`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from posthoc_bhpeft.linalg.precision import wide


@dataclass(frozen=True)
class CompletedBasis:
    """`n` orthonormal columns, of which the first `k` are given; never formed.

    With `U_1` the first `k` rows of `U`, `O` the nearest orthogonal matrix to them,
    `D = U + E O` (`E` the first `k` columns of the identity) and `T = (I + O^T U_1)^-1`, the
    reflector `I - D T D^T` is orthogonal and takes `-E O` to `U`. Its other columns complete `U`.
    `O^T U_1` is positive semi-definite, so `T` is always well conditioned.

    Attributes:
        vectors: `U` `(n, k)`.
        turn: `O` `(k, k)`.
        inverse: `T` `(k, k)`.
    """

    vectors: Tensor
    turn: Tensor
    inverse: Tensor

    @classmethod
    def of(cls, vectors: Tensor) -> CompletedBasis:
        """Complete the columns of `vectors`."""
        k = vectors.shape[1]
        left, cosines, right = torch.linalg.svd(wide(vectors[:k]))
        inverse = right.mT * (1 / (1 + cosines)) @ right
        return cls(vectors, (left @ right).to(vectors), inverse.to(vectors))

    def to(self, like: Tensor) -> CompletedBasis:
        """On the device and in the dtype of a tensor."""
        parts = (self.vectors, self.turn, self.inverse)
        return CompletedBasis(*(part.to(like) for part in parts))

    def project(self, rows: Tensor) -> Tensor:
        """`X V` for `(..., n)`: coordinates along the columns."""
        k = self.vectors.shape[1]
        head = rows @ self.vectors
        along = (head + rows[..., :k] @ self.turn) @ self.inverse
        return torch.cat([head, rows[..., k:] - along @ self.vectors[k:].mT], -1)

    def unproject(self, coordinates: Tensor) -> Tensor:
        """`C V^T` for `(..., n)`: the inverse of `project`."""
        k = self.vectors.shape[1]
        head, tail = coordinates[..., :k], coordinates[..., k:]
        along = tail @ self.vectors[k:] @ self.inverse
        rows = (head - along) @ self.vectors.mT
        rest = torch.cat([-along @ self.turn.mT, tail], -1)
        return rows + rest
