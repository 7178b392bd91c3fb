"""Labels that do not fit the outputs, refused in words; and outputs that no label may name."""

from __future__ import annotations

from torch import Tensor

from posthoc_bhpeft.errors import DataError

ABSENT = -1e4
"""Logit of a choice that is not there: its probability is 0 at any temperature in use.

Infinity would make NaN of `0 * log 0`; a constant has no gradient, so it adds no curvature.
"""


def is_absent(outputs: Tensor) -> Tensor:
    """Mask of the outputs that are `ABSENT`, in whatever type they are kept."""
    # A half-precision type rounds the constant, by less than one in a hundred.
    return outputs <= 0.99 * ABSENT


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


def check_choice_there(outputs: Tensor, labels: Tensor) -> None:
    """Raise `DataError` where a label names a choice that its row does not have."""
    absent = is_absent(outputs)
    wrong = absent.gather(1, labels.long()[:, None]).squeeze(1)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        there = int((~absent[row]).sum())
        raise DataError(
            f"Label {int(labels[row])} in row {row} of the batch names a choice that is not there: "
            f"the row has {there}, so its label must be 0 to {there - 1}. Correct the label, or "
            "how many choices the row has (n_choices, or an attention mask that is not zero)."
        )


def check_same_shape(outputs: Tensor, labels: Tensor, name: str) -> None:
    """Raise `DataError` unless labels hold one number for every output."""
    if labels.numel() != outputs.numel():
        raise DataError(
            f"{name}() needs one target an output: outputs have shape {tuple(outputs.shape)}, "
            f"labels {tuple(labels.shape)}."
        )
