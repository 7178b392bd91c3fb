"""Which rows of the data a process holds: loaders that `accelerate` or a sampler divided.

Both repeat rows at the end, so that every process gets equally many, and a sum over all processes
would count those twice. So the rows that each process is about to read are told by their place in
the data set, and the first process that has one keeps it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from posthoc_bhpeft.batches import Loader
from posthoc_bhpeft.distributed import Processes
from posthoc_bhpeft.errors import ConfigError, DataError


@dataclass(frozen=True)
class Shard:
    """This process's own part of the data; the parts of all processes make the whole.

    Loaders from `accelerator.prepare`, or with a `DistributedSampler`, become one by themselves.
    Wrap other batches to say that each process has its own: `Shard(batches)`; it may have none.

    Args:
        batches: A `DataLoader` or list of batches.
        rows: The places of their rows in the whole data, in order, where these are known.
    """

    batches: Loader
    rows: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


@dataclass(frozen=True)
class SomeBatches:
    """Some batches of a loader, in its order; read when they are asked for.

    Attributes:
        batches: All of them.
        places: Of those to keep.
    """

    batches: Loader
    places: frozenset[int]

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[Any]:
        return (batch for place, batch in enumerate(self.batches) if place in self.places)


def some_batches(loader: Loader, places: Iterable[int]) -> Loader:
    """The batches at these places; of a process's part, a smaller part."""
    chosen = SomeBatches(loader, frozenset(places))
    return Shard(chosen) if isinstance(loader, Shard) else chosen


def processes_of(loader: Any) -> Processes:
    """Those that share a loader's data: all that run for a `Shard`, else this one alone."""
    return Processes.running() if isinstance(loader, Shard) else Processes()


def own_part(loader: Any) -> Any:
    """A divided loader as a `Shard` without repeated rows; any other loader as it is.

    Called by all processes at the same point.

    Raises:
        ConfigError: If the loader deals out batches from one process.
        DataError: If the processes do not read the data in the same order.
        ProcessError: If another process failed.
    """
    processes = Processes.running()
    if processes.size == 1 or not is_divided(loader):
        return loader
    with processes.together():
        check_own_batches(loader)
        batches, expected = index_batches(loader), expected_rows(loader)
    parts = processes.gather(list(chain.from_iterable(batches)))
    check_one_order(parts, expected)
    taken = set(chain.from_iterable(parts[: processes.rank]))
    kept = without(batches, taken)
    return Shard(reading(loader, kept), tuple(chain.from_iterable(kept)))


def is_divided(loader: Any) -> bool:
    """Whether a loader is one process's part, by what its samplers say of themselves."""
    if type(loader).__name__ == "DataLoaderDispatcher":
        return True
    if isinstance(getattr(loader, "dataset", None), IterableDataset):
        return False
    counts = (
        getattr(sampler, name, 1)
        for sampler in samplers(loader)
        for name in ("num_replicas", "num_processes")
    )
    return any(isinstance(count, int) and count > 1 for count in counts)


def samplers(loader: Any) -> Iterator[Any]:
    """A loader's samplers, each followed by the one inside it."""
    waiting = [getattr(loader, "batch_sampler", None), getattr(loader, "sampler", None)]
    while waiting:
        sampler = waiting.pop(0)
        if sampler is not None:
            yield sampler
            inside = (getattr(sampler, name, None) for name in ("batch_sampler", "sampler"))
            waiting[:0] = [one for one in inside if one is not None]


def check_own_batches(loader: Any) -> None:
    """Raise if batches come from one process, which then all would have to ask in step.

    Raises:
        ConfigError: With the setting of accelerate that changes it.
    """
    if type(loader).__name__ == "DataLoaderDispatcher":
        raise ConfigError(
            "This loader reads its batches in the first process and sends them to the others. Let "
            "each process read its own: Accelerator(dataloader_config=DataLoaderConfiguration("
            "dispatch_batches=False)), or wrap what each has in Shard(batches)."
        )


def index_batches(loader: Any) -> list[list[int]]:
    """The places in the data set of the rows of each batch that a loader is about to read."""
    if getattr(loader, "rng_types", None) is not None:
        from accelerate.utils import synchronize_rng_states

        # What accelerate does before each pass, so that all processes shuffle alike.
        synchronize_rng_states(loader.rng_types, loader.synchronized_generator)
    found: Iterable[Any] = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    batches = (one if isinstance(one, list | tuple) else [one] for one in found)
    return [[place_of(row) for row in batch] for batch in batches]


def place_of(row: Any) -> Any:
    """A row's place in the data set, as something that is equal where the place is."""
    return row.item() if isinstance(row, Tensor) else row


def expected_rows(loader: Any) -> int:
    """How many different rows all processes should read together."""
    innermost = list(samplers(loader))
    divided = next((one for one in innermost if hasattr(one, "num_replicas")), None)
    if divided is not None and hasattr(divided, "dataset"):
        return len(divided.dataset)
    return min((len(one) for one in innermost if is_row_sampler(one)), default=len(loader.dataset))


def is_row_sampler(sampler: Any) -> bool:
    """Whether a sampler yields rows, not batches."""
    return not hasattr(sampler, "batch_size") and not hasattr(sampler, "batch_sampler")


def check_one_order(parts: Sequence[Sequence[int]], expected: int) -> None:
    """Raise if rows come twice while others are left out: the processes shuffled differently.

    Raises:
        DataError: With both numbers.
    """
    read = sum(map(len, parts))
    different = len(set(chain.from_iterable(parts)))
    if read > different and different < expected:
        raise DataError(
            f"The parts of {len(parts)} processes overlap: {read - different} rows come twice, and "
            f"{expected - different} of {expected} in none. They shuffle with different seeds, or "
            "draw rows with replacement. Make the loader with shuffle=False; the order of rows "
            "does not matter to a posterior."
        )


def without(batches: Sequence[Sequence[int]], taken: set[int]) -> list[list[int]]:
    """Batches without the rows that are taken, nor any row twice; none is empty."""
    kept = []
    seen = set(taken)
    for batch in batches:
        own = [row for row in dict.fromkeys(batch) if row not in seen]
        seen.update(own)
        if own:
            kept.append(own)
    return kept


def reading(loader: Any, batches: list[list[int]]) -> DataLoader[Any]:
    """A loader of the same data set that reads these batches."""
    return DataLoader(
        loader.dataset,
        batch_sampler=batches,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
    )
