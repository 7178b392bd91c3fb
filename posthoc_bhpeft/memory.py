"""Memory: refuse a fit that cannot fit before it starts, and explain one that ran out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import psutil
import torch

from posthoc_bhpeft.blocks import Block, Product
from posthoc_bhpeft.curvature import Curvature
from posthoc_bhpeft.errors import MemoryLimitError

# Factors in float32, their eigenvectors beside them, and one float64 copy while decomposing.
BYTES_A_NUMBER = 4 + 4 + 8
# Those of products are not decomposed; what follows from them shares its large factor.
BYTES_A_NUMBER_OF_PRODUCTS = 4


def available_memory(device: torch.device) -> int:
    """Free bytes on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def check_memory(
    blocks: Sequence[Block],
    curvature: Curvature,
    device: torch.device,
    products: Sequence[Product] = (),
) -> None:
    """Raise if the curvature of all blocks and products cannot fit into the memory that is free.

    Raises:
        MemoryLimitError: With the bytes needed, the largest blocks, and what is smaller.
    """
    needed = [curvature.storage(block) * BYTES_A_NUMBER for block in blocks]
    beside = sum(curvature.storage(product) for product in products) * BYTES_A_NUMBER_OF_PRODUCTS
    total, free = sum(needed) + beside, available_memory(device)
    if total <= free:
        return
    largest = sorted(zip(needed, blocks, strict=True), key=lambda pair: -pair[0])[:3]
    names = ", ".join(f"{b.name} {b.shape} {size / 2**30:.1f} GiB" for size, b in largest)
    raise MemoryLimitError(
        f"{curvature} needs about {total / 2**30:.1f} GiB for {len(blocks)} blocks"
        + (f" ({beside / 2**30:.1f} GiB of it for {len(products)} products)" if products else "")
        + f", and {free / 2**30:.1f} GiB are free on {device}. Largest: {names}. Freeze those, or "
        "use curvature=DiagonalGGN(), which keeps one number a weight."
    )


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
