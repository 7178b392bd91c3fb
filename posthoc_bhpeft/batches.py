"""Batches in, outputs out: the one place that knows what a batch looks like.

A batch is a mapping with `labels` (as `Trainer` and `datasets` give) or a pair
`(inputs, labels)`; inputs are a mapping of keyword arguments or one tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from posthoc_bhpeft.errors import DataError, ModelError, NonFiniteError

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


@dataclass(frozen=True)
class LabelSummary:
    """What one look through a loader found: rows with a label, and rows without."""

    n_rows: int
    n_ignored: int


def split_batch(batch: Any) -> tuple[Inputs, Tensor | None]:
    """Inputs and labels of a batch; labels are `None` where it has none.

    Raises:
        DataError: If the batch is neither a mapping, a pair nor a tensor.
    """
    if isinstance(batch, Mapping):
        inputs = {name: value for name, value in batch.items() if name not in LABEL_NAMES}
        labels = next((batch[name] for name in LABEL_NAMES if name in batch), None)
        return inputs, None if labels is None else torch.as_tensor(labels)
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        inputs, labels = batch
        return inputs, None if labels is None else torch.as_tensor(labels)
    if isinstance(batch, Tensor):
        return batch, None
    raise DataError(
        f"A batch of type {type(batch).__name__} is not understood. Supported: a dict with "
        "'labels', or a pair (inputs, labels) where inputs are a dict of keyword arguments or a "
        "tensor."
    )


def move(inputs: Inputs, device: torch.device) -> Inputs:
    """Inputs on a device."""
    if isinstance(inputs, Tensor):
        return inputs.to(device)
    return {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in inputs.items()
    }


def device_of(model: nn.Module) -> torch.device:
    """The device inputs go to: that of the first parameter (also with a `device_map`)."""
    return next(model.parameters()).device


def forward(model: nn.Module, inputs: Inputs) -> Tensor:
    """Outputs `(N, C)` of a model: the logits of a transformers model, or the tensor returned.

    Raises:
        ModelError: If the outputs are no `(N, C)` tensor.
        NonFiniteError: If they hold NaN or infinity.
    """
    result = model(inputs) if isinstance(inputs, Tensor) else model(**inputs)
    outputs = getattr(result, "logits", result)
    if isinstance(outputs, tuple):
        outputs = outputs[0]
    if not isinstance(outputs, Tensor):
        raise ModelError(
            f"The model returned {type(result).__name__}, which has no logits. Use a model with a "
            "head (AutoModelForSequenceClassification), or one that returns a tensor."
        )
    if outputs.dim() == 1:
        outputs = outputs.unsqueeze(-1)
    if outputs.dim() != 2:
        raise ModelError(
            f"Outputs have shape {tuple(outputs.shape)}; one row of outputs a sample, (N, C), is "
            "supported: sequence classification, multi-label or regression."
        )
    outputs = outputs.float() if outputs.dtype in (torch.float16, torch.bfloat16) else outputs
    if not bool(torch.isfinite(outputs).all()):
        raise NonFiniteError(explain_non_finite(model))
    return outputs


def explain_non_finite(model: nn.Module) -> str:
    """The message of `NonFiniteError`: which weights, if any, are to blame."""
    broken = [name for name, p in model.named_parameters() if not bool(torch.isfinite(p).all())]
    if broken:
        return (
            f"The model's outputs are NaN or infinite, and so are {len(broken)} of its tensors, "
            f"first: {broken[0]!r}. The training diverged or the file is damaged: go back to a "
            "checkpoint before that, and lower the learning rate."
        )
    return (
        "The model's outputs are NaN or infinite though its weights are finite. In float16 that is "
        "overflow: run in bfloat16 or float32. Also look for rows with an all-zero attention mask."
    )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode, and each module back in its own mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def labelled_rows(labels: Tensor) -> Tensor:
    """Mask `(N,)` of the rows that have a label (not `IGNORED`)."""
    if labels.is_floating_point() or labels.dim() != 1:
        return torch.ones(len(labels), dtype=torch.bool, device=labels.device)
    return labels != IGNORED


def look_through(loader: Iterable[Any], inspect: Callable[[Inputs, Tensor], None]) -> LabelSummary:
    """Look at every batch once, before any long work.

    Args:
        loader: Read from its first batch to its last.
        inspect: Called with the inputs of each batch and the labels of its labelled rows; its
            `DataError` is raised again with the number of the batch.

    Returns:
        How many rows have a label.

    Raises:
        DataError: If the loader cannot be iterated twice, is empty, or a batch has no labels.
    """
    if not hasattr(loader, "__len__") or iter(loader) is loader:
        raise DataError(
            f"The loader ({type(loader).__name__}) has no length or can be read only once. Pass a "
            "DataLoader or a list of batches: it is read more than once."
        )
    n_rows = n_ignored = 0
    for index, batch in enumerate(loader):
        inputs, labels = split_batch(batch)
        if labels is None:
            raise DataError(
                f"Batch {index} has no labels. Looked for {', '.join(LABEL_NAMES)} in a dict, or a "
                "pair (inputs, labels). The posterior is fitted on labelled training data."
            )
        kept = labelled_rows(labels)
        n_rows, n_ignored = n_rows + int(kept.sum()), n_ignored + int((~kept).sum())
        try:
            inspect(inputs, labels[kept])
        except DataError as error:
            raise DataError(f"Batch {index}: {error}") from error
    if n_rows == 0:
        raise DataError(
            f"The loader has no labelled row ({n_ignored} rows are marked {IGNORED}). Pass the "
            "training data: the curvature is a sum over it."
        )
    return LabelSummary(n_rows, n_ignored)
