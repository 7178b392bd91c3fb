"""Choices that a row does not have, where rows of a batch have different numbers of them."""

from __future__ import annotations

import torch
from torch import Tensor

from posthoc_bhpeft.errors import DataError
from posthoc_bhpeft.likelihood.labels import ABSENT as ABSENT

COUNT_NAME = "n_choices"
"""Column of a batch that says how many choices each row has."""


def without_absent(logits: Tensor, absent: Tensor) -> Tensor:
    """Logits `(N, C)` with `ABSENT` where a choice is not there."""
    return logits.masked_fill(absent, ABSENT)


def beyond_count(counts: Tensor | None, logits: Tensor) -> Tensor:
    """Mask `(N, C)` of the choices beyond the number `(N,)` that each row has.

    Raises:
        DataError: If a row has none, or more than there are logits.
    """
    n_choices = logits.shape[1]
    places = torch.arange(n_choices, device=logits.device)
    if counts is None:
        return places.new_zeros(logits.shape, dtype=torch.bool)
    wrong = counts[(counts < 1) | (counts > n_choices)]
    if len(wrong):
        raise DataError(
            f"A row has {int(wrong[0])} choices ({COUNT_NAME!r}), and the task has tokens for 1 to "
            f"{n_choices}. Make the task, and fit, with a token for every choice that any row has."
        )
    return places >= counts.to(places)[:, None]
