"""`Subsample`: the curvature of some of the rows, in proportion to all; for very large sets."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from posthoc_bhpeft.batches import Loader
from posthoc_bhpeft.blocks import Observed
from posthoc_bhpeft.curvature.directions import Directions
from posthoc_bhpeft.curvature.estimator import Accumulator, Curvature, nested
from posthoc_bhpeft.curvature.kronecker import KroneckerGGN
from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.shards import processes_of, some_batches


@dataclass(frozen=True)
class Subsample:
    """Another estimator on about so many rows, every sum scaled by `N / n` to all rows.

    ```python
    bayes = bayesianize(model, loader, curvature=Subsample(20_000))
    ```

    `H ~ N / n sum_{n in sample} H_n` has the right expectation, and the log likelihood too, so the
    posterior has the width that all rows give; but it knows fewer directions. Measured on a LoRA
    BERT, against the exact GGN of all rows: relative error 0.37 with every row, 0.49 with half of
    them, 0.92 with an eighth. So it is for sets whose other rows would take too long.

    Whole batches are drawn, at random: a loader that puts like rows together in one batch gives a
    sample of fewer kinds.

    Args:
        rows: How many, about; all where there are no more.
        estimator: What is done with them.
        seed: Of the draw.
    """

    rows: int
    estimator: Curvature = field(default_factory=KroneckerGGN)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ConfigError(f"Subsample(rows={self.rows}): at least 1 is needed.")

    def __str__(self) -> str:
        return f"{self.estimator} on about {self.rows} rows (seed {self.seed}), scaled to all,"

    @property
    def directions(self) -> Directions:
        """Those of the estimator."""
        return self.estimator.directions

    def storage(self, block: Observed) -> int:
        """Numbers kept for one block."""
        return self.estimator.storage(block)

    def accumulator(self, block: Observed) -> Accumulator:
        """Of the estimator."""
        return self.estimator.accumulator(block)


def sampled(estimator: Curvature, loader: Loader, n_rows: int) -> Loader:
    """The batches that an estimator is to see.

    Args:
        estimator: Any; all but `Subsample` see every batch.
        loader: Of the whole data, or of one process's part.
        n_rows: Of the whole data.
    """
    chosen = next((one for one in nested(estimator) if isinstance(one, Subsample)), None)
    if chosen is None or chosen.rows >= n_rows:
        return loader
    # Streams of their own: parts of the data may be in the same order of some kind.
    generator = torch.Generator().manual_seed(chosen.seed + processes_of(loader).rank)
    wanted = math.ceil(len(loader) * chosen.rows / n_rows)
    places = torch.randperm(len(loader), generator=generator)[:wanted].tolist()
    return some_batches(loader, places)
