"""Multiple choice with a text for every choice: inputs `(N, K, T)`, logits `(N, K)`.

The model reads `N K` texts, and a row's gradient is the sum over its `K` choices; the tape groups
them (see `blocks.tape`). A choice whose attention mask is all zero is not there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from posthoc_bhpeft.batches import call, logits_of
from posthoc_bhpeft.errors import DataError, ModelError
from posthoc_bhpeft.tasks.absent import without_absent
from posthoc_bhpeft.tasks.task import base_of


@dataclass(frozen=True)
class MultipleChoice:
    """`AutoModelForMultipleChoice`, whose rows may have different numbers of choices.

    Where all rows have equally many, the model works without a task too.
    """

    def outputs(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """See `Task.outputs`."""
        given, absent = with_absent_read(inputs)
        # transformers views them as (N K, T), which part of a larger tensor may not allow.
        whole = {n: v.contiguous() if isinstance(v, Tensor) else v for n, v in given.items()}
        return without_absent(logits_of(call(model, whole)), absent)


@dataclass(frozen=True)
class PairScores:
    """A sequence classifier with one logit, which scores question and choice as a pair."""

    def outputs(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """See `Task.outputs`."""
        given, absent = with_absent_read(inputs)
        n_rows, n_choices = absent.shape
        flat = {
            name: value.flatten(0, 1) if is_by_choice(value, absent) else value
            for name, value in given.items()
        }
        logits = logits_of(call(model, flat))
        if logits.shape[0] != n_rows * n_choices or logits.numel() != n_rows * n_choices:
            raise ModelError(
                f"PairScores needs one logit a pair, and {type(base_of(model)).__name__} gave "
                f"{tuple(logits.shape)} for {n_rows} rows of {n_choices} choices. Load it with "
                "num_labels=1."
            )
        return without_absent(logits.reshape(n_rows, n_choices), absent)


def is_by_choice(value: Any, absent: Tensor) -> bool:
    """Whether an input has a row for every choice, `(N, K, ...)`."""
    return isinstance(value, Tensor) and value.dim() > 2 and value.shape[:2] == absent.shape


def with_absent_read(inputs: dict[str, Any]) -> tuple[dict[str, Any], Tensor]:
    """Inputs in which every choice has a token to attend to, and which choices are not there.

    A text without any would make NaN in some attention; what it gives is not used.

    Raises:
        DataError: If the token ids are not `(N, K, T)`, or a row has no choice.
    """
    ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
    if not isinstance(ids, Tensor) or ids.dim() != 3:
        found = sorted(inputs) if ids is None else tuple(ids.shape)
        raise DataError(
            f"Multiple choice needs 'input_ids' (N, K, T), one text a choice; got {found}. "
            "make_loader(encode_choices(rows, tokenizer), tokenizer) makes such batches."
        )
    if mask is None:
        return inputs, torch.zeros(ids.shape[:2], dtype=torch.bool, device=ids.device)
    absent = (mask == 0).all(-1)
    if bool(absent[:, 0].any()):
        raise DataError("The first choice of a row has no token. Choices are filled from the left.")
    readable = mask.clone()
    readable[..., 0] = readable[..., 0].masked_fill(absent, 1)
    return {**inputs, "attention_mask": readable}, absent
