"""What a batch looks like: inputs and labels, and which rows have a label."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from posthoc_bhpeft.errors import DataError

LABEL_NAMES = ("labels", "label", "label_ids")
IGNORED = -100
"""Label of a row without a label, as in torch's `ignore_index`."""

Inputs = Mapping[str, Any] | Tensor


class Loader(Protocol):
    """A `DataLoader`, a list of batches, or anything sized that can be iterated again."""

    def __len__(self) -> int:
        """Number of batches."""
        ...

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the batches, from the first."""
        ...


def split_batch(batch: Any) -> tuple[Inputs, Tensor | None]:
    """Inputs and labels of a batch; labels are `None` where it has none.

    Raises:
        DataError: If the batch is neither a mapping, a pair nor a tensor, or labels are no numbers.
    """
    if isinstance(batch, Mapping):
        inputs = {name: value for name, value in batch.items() if name not in LABEL_NAMES}
        labels = next((batch[name] for name in LABEL_NAMES if name in batch), None)
        return check_inputs(inputs), as_labels(labels)
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return check_inputs(batch[0]), as_labels(batch[1])
    if isinstance(batch, Tensor):
        return batch, None
    many = f" of {len(batch)} entries" if isinstance(batch, (tuple, list)) else ""
    raise DataError(
        f"A batch of type {type(batch).__name__}{many} is not understood. Supported: a dict with "
        "'labels', or a pair (inputs, labels) where inputs are a dict of keyword arguments or a "
        "tensor. For a list of rows, give the DataLoader a collate_fn (DataCollatorWithPadding)."
    )


def check_inputs(inputs: Any) -> Inputs:
    """The inputs of a batch, unless they are no tensors.

    Raises:
        DataError: If they are neither a mapping nor a tensor, or hold lists or arrays.
    """
    if isinstance(inputs, Tensor):
        return inputs
    if not isinstance(inputs, Mapping):
        raise DataError(
            f"The inputs of a batch must be a dict of keyword arguments or a tensor, got "
            f"{type(inputs).__name__}. For texts, use what the tokenizer returns: "
            "tokenizer(texts, padding=True, return_tensors='pt')."
        )
    for name, value in inputs.items():
        if isinstance(value, (list, tuple, str)) or type(value).__module__ == "numpy":
            raise DataError(
                f"{name!r} in a batch is a {type(value).__name__}, not a tensor. Tokenize with "
                "return_tensors='pt', or call dataset.with_format('torch'); columns that are no "
                "input of the model (texts, ids) are left out with dataset.remove_columns."
            )
    return inputs


def as_labels(labels: Any) -> Tensor | None:
    """Labels as a tensor `(N, ...)`, or `None` where there are none.

    Raises:
        DataError: If they are no numbers, or one number for the whole batch.
    """
    if labels is None:
        return None
    try:
        tensor = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"The labels of a batch are no numbers ({error}), but {str(labels)[:60]}. Give each "
            "class a number from 0, as ClassLabel and label2id do, and every row equally many "
            "labels."
        ) from error
    if tensor.dim() == 0:
        raise DataError(
            f"The labels of a batch are the single number {tensor.item()!r}, not one a row. Single "
            "rows are put into batches by DataLoader(dataset, batch_size=16)."
        )
    return tensor


def move(inputs: Inputs, device: torch.device) -> Inputs:
    """Inputs on a device."""
    if isinstance(inputs, Tensor):
        return inputs.to(device)
    return {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in inputs.items()
    }


def labelled_rows(labels: Tensor) -> Tensor:
    """Mask `(N,)` of the rows that have a label, at one position or more (not `IGNORED`)."""
    if labels.is_floating_point():
        return torch.ones(len(labels), dtype=torch.bool, device=labels.device)
    return (labels != IGNORED).flatten(1).any(1) if labels.dim() > 1 else labels != IGNORED
