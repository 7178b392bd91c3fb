"""`Rival`: a name, and predictions for a loader."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sized
from typing import Any, Protocol

from posthoc_bhpeft.batches import Inputs, split_batch
from posthoc_bhpeft.memory import explaining_memory
from posthoc_bhpeft.predictive import Prediction
from posthoc_bhpeft.progress import track


class Rival(Protocol):
    """A way to predict; every one is ready when it is made, with whatever it had to fit."""

    @property
    def name(self) -> str:
        """For tables."""
        ...

    def predict_loader(self, loader: Iterable[Any], *, progress: bool = True) -> Prediction:
        """Predict every batch of a loader.

        Args:
            loader: Batches, with or without labels.
            progress: Show a progress bar.

        Returns:
            One prediction for all rows, on the CPU.
        """
        ...


def predict_batches(
    loader: Iterable[Any], predict: Callable[[Inputs], Prediction], label: str, progress: bool
) -> Prediction:
    """`predict` of each batch's inputs, beside the batch's labels, as one prediction.

    Raises:
        DataError: If the loader has no batch.
    """
    total = len(loader) if isinstance(loader, Sized) else None
    parts = []
    for batch in track(loader, label, total, progress):
        inputs, labels = split_batch(batch)
        with explaining_memory():
            parts.append(predict(inputs).with_labels(labels).cpu())
    return Prediction.concatenate(parts)
