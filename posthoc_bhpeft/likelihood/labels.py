"""Labels that do not fit the outputs, refused in words."""

from __future__ import annotations

from torch import Tensor

from posthoc_bhpeft.errors import DataError


def check_class_labels(labels: Tensor, n_classes: int) -> None:
    """Raise `DataError` unless every label `(N,)` is an integer in `0 .. n_classes - 1`."""
    if labels.is_floating_point():
        raise DataError(
            f"Class labels must be integers, got {labels.dtype}. For regression pass "
            "likelihood=Gaussian(), for multi-label targets likelihood=Bernoulli()."
        )
    if labels.dim() != 1:
        raise DataError(
            f"Class labels must have shape (N,), got {tuple(labels.shape)}. Call "
            "labels.squeeze(-1), or pass likelihood=Bernoulli() if each row has several yes-or-no "
            "labels."
        )
    wrong = (labels < 0) | (labels >= n_classes)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise DataError(
            f"Label {int(labels[row])} in row {row} of the batch is out of range: the model has "
            f"{n_classes} outputs, so labels must be 0 to {n_classes - 1}. Load the model with the "
            "right num_labels, or drop the row (-100 marks rows without a label)."
        )


def check_same_shape(outputs: Tensor, labels: Tensor, name: str) -> None:
    """Raise `DataError` unless labels hold one number for every output."""
    if labels.numel() != outputs.numel():
        raise DataError(
            f"{name}() needs one target an output: outputs have shape {tuple(outputs.shape)}, "
            f"labels {tuple(labels.shape)}."
        )
