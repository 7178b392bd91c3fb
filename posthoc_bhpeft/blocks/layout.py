"""Which axis of a tapped tensor is that of the rows, where sizes alone do not tell.

Most models have rows first, `(N, T, d)` or folded with windows `(N k, w, d)`; some have positions
first, `(T, N, d)` (Longformer, XLNet). With as many rows as positions, or as a window is long, both
readings fit. Then the gradient of one row's outputs tells: it is zero wherever other rows are.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from posthoc_bhpeft.errors import ModelError

ROUNDING = 1e-4
"""Share of a gradient that may lie in other rows, as kernels round."""


def rows_are_second(shape: Sequence[int], n_rows: int) -> bool | None:
    """Whether rows are the second axis of a tensor; `None` where sizes do not tell.

    Args:
        shape: Of what is tapped.
        n_rows: That modules see.
    """
    if len(shape) != 3 or n_rows == 1 or shape[1] != n_rows:
        return False
    return None if shape[0] % n_rows == 0 else True


def rows_seen_second(gradient: Tensor, row: int, n_rows: int, n_inner: int) -> bool | None:
    """The same from the gradient `(a, b, d)` of one row's outputs; `None` if both readings fit.

    Args:
        gradient: At what is tapped.
        row: Whose outputs.
        n_rows: Of the outputs.
        n_inner: That modules see, `K n_rows` with `K` texts a row.

    Raises:
        ModelError: If neither reading fits: rows are mixed.
    """
    size = gradient.abs().sum(-1)
    if not bool(size.any()):
        return None
    first = size.reshape(n_rows, -1)[row].sum()
    second = size.reshape(len(size), n_rows, n_inner // n_rows)[:, row].sum()
    whole = (1 - ROUNDING) * size.sum()
    readings = bool(first >= whole), bool(second >= whole)
    if readings == (False, False):
        raise ModelError(
            "The outputs of one row depend on what a tapped module computes for other rows of the "
            "batch, so there is no gradient a row. Freeze its tensors to leave them out."
        )
    return None if all(readings) else readings[1]


def rows_first(tensor: Tensor, second: bool, n_rows: int) -> Tensor:
    """`(T, N, ...)` or `(N k, w, ...)` as `(N, T, ...)`."""
    if second:
        return tensor.transpose(0, 1)
    return tensor.reshape(n_rows, -1, *tensor.shape[2:])
