"""Arrays as the metrics want them: checked, on the CPU, float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from posthoc_bhpeft.errors import ConfigError, DataError, NonFiniteError

Array: TypeAlias = torch.Tensor | NDArray[Any]
Floats: TypeAlias = NDArray[np.float64]

# Rows of a bfloat16 softmax miss one by up to this much; logits miss it by far more.
_SUM_TOLERANCE = 0.02


def check_pair(probabilities: Array, labels: Array) -> tuple[Floats, NDArray[np.int64]]:
    """Probabilities ``(N, C)`` with rows that sum to one, and labels ``(N,)`` in ``0 .. C - 1``.

    Raises:
        DataError: if shapes, ranges or row sums are wrong, or there is no row.
        NonFiniteError: if a probability is NaN or infinite.
    """
    p = check_probabilities(probabilities)
    return p, check_labels(labels, *p.shape)


def check_probabilities(probabilities: Array) -> Floats:
    """Probabilities ``(N, C)``, each row normalised once more in float64.

    Raises:
        DataError: if the shape, ranges or row sums are wrong, or there is no row.
        NonFiniteError: if a probability is NaN or infinite.
    """
    p = as_floats(probabilities)
    if p.ndim != 2 or p.shape[1] < 2:
        raise DataError(
            f"probabilities have shape {p.shape}, they must be (N, C) with two classes or more; "
            "for p of a yes-or-no question pass stack([1 - p, p], 1)"
        )
    if len(p) == 0:
        raise DataError("probabilities have no row, so there is nothing to measure")
    return _normalised(p)


def check_labels(labels: Array, rows: int, classes: int) -> NDArray[np.int64]:
    """Labels ``(N,)`` as integers in ``0 .. C - 1``.

    Raises:
        DataError: if the shape, a value or the type is wrong.
    """
    raw = as_floats(labels)
    if raw.shape != (rows,):
        raise DataError(f"labels have shape {raw.shape}, they must be ({rows},), one for each row")
    y = np.nan_to_num(raw, nan=-1.0).astype(np.int64)
    wrong = np.flatnonzero((y != raw) | (y < 0) | (y >= classes))
    if len(wrong):
        raise DataError(
            f"{len(wrong)} of {rows} labels are no class from 0 to {classes - 1}, first "
            f"{raw[wrong[0]]:g} in row {wrong[0]}; leave rows without a label out"
        )
    return y


def check_scores(scores: Array, rows: int) -> Floats:
    """Uncertainty scores ``(N,)``.

    Raises:
        DataError: if the shape is wrong.
        NonFiniteError: if a score is NaN; infinity is a fair way to say "least certain".
    """
    values = as_floats(scores)
    if values.shape != (rows,):
        raise DataError(f"uncertainty has shape {values.shape}, it must be ({rows},)")
    if np.isnan(values).any():
        raise NonFiniteError(f"{np.isnan(values).sum()} of {rows} uncertainties are NaN")
    return values


def check_share(share: float, rows: int) -> int:
    """Number of rows that are a share of all of them, at least one row staying.

    Raises:
        ConfigError: if the share is out of range or no row would stay.
    """
    if not 0.0 <= share < 1.0:
        raise ConfigError(f"share is {share}, it must be 0 or more and less than 1")
    rejected = round(share * rows)
    if rejected >= rows:
        raise ConfigError(f"share {share} of {rows} rows rejects all of them")
    return rejected


def as_floats(values: Array) -> Floats:
    """Float64 numpy values of a tensor on any device or of an array."""
    if isinstance(values, torch.Tensor):
        return values.detach().to("cpu", torch.float64).numpy()
    return np.asarray(values, dtype=np.float64)


def _normalised(p: Floats) -> Floats:
    if not np.isfinite(p).all():
        bad = int((~np.isfinite(p).all(axis=1)).sum())
        raise NonFiniteError(f"{bad} of {len(p)} rows of probabilities hold NaN or infinity")
    sums = p.sum(axis=1, keepdims=True)
    if (p < 0).any() or (np.abs(sums - 1) > _SUM_TOLERANCE).any():
        raise DataError(
            f"rows of probabilities sum to {sums.min():.3g} .. {sums.max():.3g} with a smallest "
            f"value of {p.min():.3g}; they must be 0 or more and sum to 1. Logits need a softmax; "
            "labels that do not exclude each other are measured one at a time"
        )
    normalised: Floats = p / sums
    return normalised


def source_indices(columns: Mapping[str, Sequence[Any]]) -> tuple[int, ...] | None:
    """The rows' numbers in their source, where `bhpeft predict` wrote them."""
    if not {"index", "prediction"} <= {*columns}:
        return None
    found = columns["index"]
    return tuple(found) if all(type(index) is int for index in found) else None
