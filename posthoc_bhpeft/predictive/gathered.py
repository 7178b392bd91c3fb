"""Predictions of several processes as one, in the order of the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import torch

from posthoc_bhpeft.predictive.prediction import Prediction
from posthoc_bhpeft.shards import Shard, processes_of


def gathered(parts: Sequence[Prediction], loader: Any) -> Prediction:
    """What all processes predict, on each: by row where rows are known, else process by process.

    Args:
        parts: Of this process's batches, on the CPU; none where it has no row.
        loader: What they were predicted from; all of the data unless it is a `Shard`.

    Raises:
        DataError: If no process has a batch.
    """
    processes = processes_of(loader)
    joined = Prediction.concatenate(list(chain.from_iterable(processes.gather(list(parts)))))
    places = processes.gather(loader.rows) if isinstance(loader, Shard) else [None]
    if any(own is None for own in places):
        return joined
    return in_order(joined, list(chain.from_iterable(own for own in places if own is not None)))


def in_order(prediction: Prediction, places: Sequence[Any]) -> Prediction:
    """Rows sorted by their places in the data."""
    order = torch.tensor(sorted(range(len(places)), key=lambda row: places[row]))
    columns: dict[str, Any] = {
        name: None if column is None else column[order]
        for name, column in prediction.columns().items()
    }
    return replace(prediction, **columns)
