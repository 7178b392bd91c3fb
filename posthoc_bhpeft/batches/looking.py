"""One look through a loader before any long work: is it labelled, and can it be read again?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from posthoc_bhpeft.batches.reading import IGNORED, LABEL_NAMES, Inputs, labelled_rows, split_batch
from posthoc_bhpeft.errors import DataError


@dataclass(frozen=True)
class LabelSummary:
    """What one look through a loader found: rows with a label, and rows without."""

    n_rows: int
    n_ignored: int


def look_through(
    loader: Iterable[Any],
    inspect: Callable[[Inputs, Tensor], None],
    name: str = "The loader",
) -> LabelSummary:
    """Look at every batch once, before any long work.

    Args:
        loader: Read from its first batch to its last.
        inspect: Called with the inputs of each batch and the labels of its labelled rows; its
            `DataError` is raised again with the number of the batch.
        name: Of the loader, for errors.

    Returns:
        How many rows have a label.

    Raises:
        DataError: If the loader cannot be iterated twice, is empty, or a batch has no labels.
    """
    summary = summarize(loader, inspect, name)
    check_labelled(summary, name)
    return summary


def summarize(
    loader: Iterable[Any], inspect: Callable[[Inputs, Tensor], None], name: str
) -> LabelSummary:
    """`look_through` a part of the data, which may be empty.

    Raises:
        DataError: If the loader cannot be iterated twice, or a batch has no labels.
    """
    check_rereadable(loader, name)
    n_rows = n_ignored = 0
    for place, batch in enumerate(loader):
        try:
            inputs, labels = split_batch(batch)
            if labels is None:
                raise DataError(describe_unlabelled(batch))
            check_row_count(inputs, len(labels))
            kept = labelled_rows(labels)
            inspect(inputs, labels[kept])
        except DataError as error:
            raise DataError(f"{name}, batch {place}: {error}") from error
        n_rows, n_ignored = n_rows + int(kept.sum()), n_ignored + int((~kept).sum())
    return LabelSummary(n_rows, n_ignored)


def check_labelled(summary: LabelSummary, name: str) -> None:
    """Raise if there is no labelled row.

    Raises:
        DataError: With what there is instead.
    """
    if summary.n_rows == 0:
        n_ignored = summary.n_ignored
        found = f"{n_ignored} rows, all marked {IGNORED}" if n_ignored else "no batch at all"
        raise DataError(
            f"{name} has no labelled row: {found}. Pass labelled data; for the curvature, which is "
            "a sum over it, what the model was trained on."
        )


def check_rereadable(loader: Any, name: str) -> None:
    """Raise unless a loader has a length and can be read more than once.

    Raises:
        DataError: If it is an iterator, a stream, or not iterable.
    """
    try:
        sized = len(loader) >= 0 and not isinstance(loader, (Iterator, Mapping, str, Tensor))
    except TypeError:
        sized = False
    if not sized:
        raise DataError(
            f"{name} must be batches that can be counted and read more than once: a DataLoader "
            f"over a dataset with a length, or a list; got {describe_stream(loader)}. Turn a "
            "generator into list(batches), and a single batch into [batch]."
        )


def describe_stream(loader: Any) -> str:
    """What was passed in place of a loader."""
    dataset = getattr(loader, "dataset", None)
    inside = "" if dataset is None else f" over {type(dataset).__name__}, which has no length"
    return f"{type(loader).__name__}{inside}"


def describe_unlabelled(batch: Any) -> str:
    """What was found in place of labels."""
    found = {k: v for k, v in batch.items() if v is not None} if isinstance(batch, Mapping) else {}
    only = f", only {sorted(map(str, found))}" if found else ""
    return (
        f"no labels{only}. Looked for {', '.join(map(repr, LABEL_NAMES))} in a dict, or a pair "
        "(inputs, labels). The prior and the curvature are found from labelled data."
    )


def check_row_count(inputs: Inputs, n_labels: int) -> None:
    """Raise if inputs and labels of a batch have different numbers of rows.

    Raises:
        DataError: With both numbers.
    """
    tensors = inputs.values() if isinstance(inputs, Mapping) else (inputs,)
    n_rows = next((len(t) for t in tensors if isinstance(t, Tensor) and t.dim() > 0), n_labels)
    if n_labels == 0:
        raise DataError("it has no rows. Leave empty batches out.")
    if n_rows != n_labels:
        raise DataError(
            f"there are {n_rows} rows of inputs but {n_labels} labels. Give one label a row; a row "
            f"without one is marked {IGNORED}."
        )
