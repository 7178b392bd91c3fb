"""Processes that work on one fit together, as `torchrun` and `accelerate` start them.

Every function here is called by all processes at the same point, and does nothing at all where
there is only one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from posthoc_bhpeft.errors import ProcessError

BUCKET = 1 << 26
"""Numbers summed in one message: 256 MiB in single precision."""

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """The processes of a fit, as one of them sees it.

    Attributes:
        rank: Which one this is, from 0.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def running(cls) -> Processes:
        """Those of the default process group; one where none was set up."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def first(self) -> bool:
        """Whether this is the process that shows progress and writes files."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """What every process passes, in their order; any object that can be pickled."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def of_first(self, value: T) -> T:
        """What the first process passes."""
        return self.gather(value if self.first else None)[0]  # type: ignore[return-value]

    def sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Sums over processes, on the devices of the tensors; few messages, however many tensors.

        Args:
            tensors: Of the same shapes and types on every process.
        """
        if self.size == 1:
            return list(tensors)
        return [total for bucket in buckets(tensors) for total in reduced(bucket)]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Raise on every process if any of them raises inside, so that none waits forever.

        What runs inside must not talk to the other processes.

        Raises:
            ProcessError: If another process failed, with what it said; that process raises its own.
        """
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
        said = self.gather(None if failure is None else f"{type(failure).__name__}: {failure}")
        if failure is not None:
            raise failure
        for rank, text in enumerate(said):
            if text is not None:
                raise ProcessError(f"Process {rank} of {self.size} stopped, so all do. {text}")

    def shared(self, own: Iterable[T], move: Callable[[T], T] = lambda one: one) -> Iterator[T]:
        """The items of all processes on each: everybody's first, everybody's second, and so on.

        Args:
            own: This process's items; not necessarily as many as the others'.
            move: Applied to an item before it is sent: to the CPU, as another process may have no
                such device.

        Raises:
            ProcessError: If another process failed while making an item.
        """
        if self.size == 1:
            yield from own
            return
        items, done = iter(own), False
        while not done:
            with self.together():
                mine = next(items, None)
            found = self.gather(None if mine is None else move(mine))
            yield from (one for one in found if one is not None)
            done = all(one is None for one in found)

    def stream(self, generator: torch.Generator) -> torch.Generator:
        """Randomness of this process's own; on the first, what was given.

        With one seed for all, the random signs of row `n` would be the same on each, and their
        errors would not average out.
        """
        if self.first:
            return generator
        seed = int(torch.randint(1 << 62, (), generator=generator))
        return torch.Generator().manual_seed(seed + self.rank)


def buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of one type, at most `BUCKET` numbers together unless one alone is larger."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        size = sum(one.numel() for one in bucket) + tensor.numel()
        if bucket and (tensor.dtype != bucket[0].dtype or size > BUCKET):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def reduced(bucket: Sequence[Tensor]) -> list[Tensor]:
    """The sums of one bucket, in one message."""
    device = message_device()
    flat = torch.cat([tensor.flatten().to(device) for tensor in bucket])
    dist.all_reduce(flat)
    parts = flat.split([tensor.numel() for tensor in bucket])
    pairs = zip(parts, bucket, strict=True)
    return [part.view(tensor.shape).to(tensor.device) for part, tensor in pairs]


def message_device() -> torch.device:
    """Where a message must lie: NCCL takes it from a GPU only."""
    if "nccl" in dist.get_backend_config():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
