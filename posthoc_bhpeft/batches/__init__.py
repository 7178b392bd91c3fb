"""Batches in, outputs out: the one place that knows what a batch looks like.

A batch is a mapping with `labels` (as `Trainer` and `datasets` give) or a pair
`(inputs, labels)`; inputs are a mapping of keyword arguments or one tensor.
"""

from posthoc_bhpeft.batches.calling import (
    call,
    device_of,
    evaluating,
    forward,
    logits_of,
)
from posthoc_bhpeft.batches.looking import (
    LabelSummary,
    check_labelled,
    check_rereadable,
    look_through,
    summarize,
)
from posthoc_bhpeft.batches.quantised import differentiable, scales
from posthoc_bhpeft.batches.reading import (
    IGNORED,
    Inputs,
    Loader,
    labelled_rows,
    move,
    split_batch,
)

__all__ = [
    "IGNORED",
    "Inputs",
    "LabelSummary",
    "Loader",
    "call",
    "check_labelled",
    "check_rereadable",
    "device_of",
    "differentiable",
    "evaluating",
    "forward",
    "labelled_rows",
    "logits_of",
    "look_through",
    "move",
    "scales",
    "split_batch",
    "summarize",
]
