"""Decompositions on a processor: one thread a matrix, several matrices at once.

A decomposition is thousands of small steps, and split over threads each step waits for the slowest
of them. Eigenvectors of 384 x 384 took 13 ms on two idle cores and 1,670 ms where another process
had one of the two, measured; on one thread 16 and 18 ms, and 11 ms a matrix with two matrices at
once. The numbers then are the same for any number of threads, too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor

NARROW = 1024
"""Width up to which a matrix gets one thread; of wider ones a step is long enough to be split."""

Made = TypeVar("Made")


def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """`torch.linalg.eigh`, on one thread where that is as fast."""
    narrow = matrix.device.type == "cpu" and matrix.shape[-1] <= NARROW
    with one_thread() if narrow else nullcontext():
        values, vectors = torch.linalg.eigh(matrix)
    return values, vectors


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def side_by_side(
    makers: Mapping[str, Callable[[], Made]], narrow: Collection[str]
) -> dict[str, Made]:
    """What every maker makes, by name in their order.

    Args:
        makers: By name; what fails in one of them is raised.
        narrow: Those whose work is on the processor and on narrow matrices: done on one thread
            each, as many at once as torch has threads. All others are done one by one.
    """
    together = [name for name in makers if name in narrow]
    workers = min(torch.get_num_threads(), len(together))
    made: dict[str, Made] = {}
    if workers > 1:
        with one_thread(), ThreadPoolExecutor(workers) as pool:
            made = dict(zip(together, pool.map(lambda name: makers[name](), together), strict=True))
    return {name: made[name] if name in made else make() for name, make in makers.items()}
