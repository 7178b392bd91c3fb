"""Run by a test: a fit that keeps its sums, in a process that may be killed on the way.

`python -m tests.distributed.resumed FOLDER ROW`: killed without warning when the fit reads that
row; never where it is -1.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from posthoc_bhpeft import KroneckerGGN, RandomSigns, Resume
from tests.distributed.cases import fit, numbers, rows_of, whole
from tests.models import hybrid

RANDOM = KroneckerGGN(directions=RandomSigns())
FIT_PASS = 2
"""The first look at the labels is the first pass."""


class Deadly(Dataset[Any]):
    """Rows of which one is the last that the process reads."""

    def __init__(self, rows: list[Any], last: int) -> None:
        self.rows, self.last = rows, last
        self.times_read = 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Any:
        if row == self.last:
            self.times_read += 1
            if self.times_read == FIT_PASS:
                os.kill(os.getpid(), signal.SIGKILL)
        return self.rows[row]


def main(folder: Path, last: int) -> None:
    """Fit, and write what came out."""
    loader: DataLoader[Any] = whole(Deadly(rows_of(hybrid()), last))  # type: ignore[arg-type]
    bayes = fit(loader, curvature=RANDOM, resume=Resume(folder / "partial", seconds=0))
    torch.save(numbers(bayes), folder / "found.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
