"""Memory: how much is free, and what to do where it ran out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

from posthoc_bhpeft.errors import MemoryLimitError


def available_memory(device: torch.device) -> int:
    """Free bytes on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


@contextmanager
def explaining_memory() -> Iterator[None]:
    """Turn a device's out-of-memory error into one that says what to do.

    Raises:
        MemoryLimitError: In place of `torch.OutOfMemoryError`.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise MemoryLimitError(
            f"Memory ran out on a batch: {first_line} Use a smaller batch_size in the loader, "
            "shorter texts (max_length), or move the model to the CPU (model.cpu()). Nothing was "
            "changed or saved."
        ) from error


def ran_out(error: BaseException) -> bool:
    """Whether an error is one of lacking memory; the CPU and Apple's GPU have no type for it."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return "can't allocate memory" in str(error) or "out of memory" in str(error)
