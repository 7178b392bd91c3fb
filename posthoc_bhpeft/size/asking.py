"""`estimate`: the one call; and the check of memory before a fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from posthoc_bhpeft import memory
from posthoc_bhpeft.batches import Loader, device_of
from posthoc_bhpeft.blocks import (
    DEFAULT_RECOGNIZERS,
    Block,
    Product,
    Recognizer,
    discover,
    find_products,
)
from posthoc_bhpeft.curvature import Curvature, KroneckerGGN
from posthoc_bhpeft.errors import DataError, MemoryLimitError
from posthoc_bhpeft.likelihood import Categorical, Likelihood
from posthoc_bhpeft.predictive import Linearized, Tangent
from posthoc_bhpeft.prior import GaussianPrior
from posthoc_bhpeft.selection import LeaveOneOut, PriorRule
from posthoc_bhpeft.selection.hidden import has_mask
from posthoc_bhpeft.size.batch import (
    BatchBytes,
    measure_batch,
    one_row,
    rows_of,
    stored_tensors,
    text_row,
)
from posthoc_bhpeft.size.estimate import Estimate
from posthoc_bhpeft.size.passes import Data
from posthoc_bhpeft.size.quantised import saved_bytes
from posthoc_bhpeft.size.table import bytes_text
from posthoc_bhpeft.size.work import Work


def estimate(
    model: nn.Module,
    loader: Loader | None = None,
    *,
    likelihood: Likelihood = Categorical(),
    curvature: Curvature = KroneckerGGN(),
    prior: PriorRule | GaussianPrior = LeaveOneOut(),
    predictive: Any = None,
    recognizers: Sequence[Recognizer] = DEFAULT_RECOGNIZERS,
    products: bool = False,
    batch_size: int = 16,
    length: int = 128,
    n_rows: int | None = None,
    quantization: Mapping[str, Any] | None = None,
) -> Estimate:
    """What `bayesianize` with these arguments would need, in bytes and passes, by block.

    One forward pass of one row is made, to count what it keeps. A model on the meta device
    (`with torch.device("meta")`) has shapes and no numbers, so an 8B model is estimated on a laptop
    in seconds.

    ```python
    found = estimate(model, train_loader)
    print(found)
    found.fits("cuda"), found.peak, found.cheaper()
    ```

    Args:
        model: What would be bayesianized.
        loader: The training data. Only its first batch is read.
        likelihood: As for `bayesianize`.
        curvature: As for `bayesianize`.
        prior: As for `bayesianize`.
        predictive: As for `bayesianize`.
        recognizers: As for `bayesianize`.
        products: As for `bayesianize`.
        batch_size: Rows of a batch, where there is no loader.
        length: Tokens of a row, where there is no loader.
        n_rows: Of the data, where there is no loader.
        quantization: How the base will be kept, where the model is not quantised yet: a
            `BitsAndBytesConfig` as a mapping.

    Returns:
        The estimate; printed, it is a table.

    Raises:
        ModelError: If the model has nothing trainable, or blocks that are not known.
        ConfigError: If there is no loader, and the model takes no token ids.
        DataError: If the loader is empty.
    """
    blocks = discover(model, recognizers)
    saved = saved_bytes(model, quantization) if quantization else 0
    batch, data = measured(model, blocks, loader, batch_size, length, n_rows)
    return Estimate(
        Work(
            blocks,
            find_products(blocks) if products else (),
            curvature,
            likelihood,
            prior,
            predictive or (Tangent() if likelihood.positions else Linearized()),
            data,
            batch,
            device_of(model),
            stored_bytes(model) - saved,
            gradient_item(model),
        )
    )


def measured(
    model: nn.Module,
    blocks: Sequence[Block],
    loader: Loader | None,
    batch_size: int,
    length: int,
    n_rows: int | None,
) -> tuple[BatchBytes, Data]:
    """One row of the loader, or made up; and how many there are.

    Raises:
        DataError: If the loader has no batch.
    """
    if loader is None:
        row = text_row(model, length)
        return measure_batch(model, blocks, row, batch_size), Data(n_rows, batch_size, masked=True)
    first = next(iter(loader), None)
    if first is None:
        raise DataError("The loader has no batch, so there is nothing to estimate from.")
    size = rows_of(first[0] if isinstance(first, tuple | list) else first)
    batch = measure_batch(model, blocks, one_row(first), size)
    return batch, Data(size * len(loader), size, has_mask(first))


def stored_bytes(model: nn.Module) -> int:
    """Of all weights and buffers, each once."""
    storages = [tensor.untyped_storage() for tensor in stored_tensors(model)]
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())


def gradient_item(model: nn.Module) -> int:
    """Bytes of a number of the sums: float32, unless the model is wider."""
    sizes = (p.element_size() for p in model.parameters() if p.requires_grad)
    return max(4, *sizes)


def check_memory(
    blocks: tuple[Block, ...],
    curvature: Curvature,
    model: nn.Module,
    products: tuple[Product, ...] = (),
) -> None:
    """Raise if the curvature of all blocks and products cannot fit into the memory that is free.

    Raises:
        MemoryLimitError: With the table of `estimate`, without the activations of a batch.
    """
    device = device_of(model)
    work = Work(
        blocks,
        products,
        curvature,
        Categorical(),
        None,
        None,
        Data(None, 1),
        None,
        device,
        stored_bytes(model),
        gradient_item(model),
    )
    found = Estimate(work)
    place, needed = found.factors_on, max(found.factor_phases.values())
    free = memory.available_memory(place)
    if needed <= free:
        return
    beside = sum(block.resting for block in found.blocks if block.kind is None)
    raise MemoryLimitError(
        f"{curvature} needs about {bytes_text(needed)} for {len(blocks)} blocks"
        + (f" ({bytes_text(beside)} of it for {len(products)} products)" if products else "")
        + f", and {bytes_text(free)} are free on {place}. Choose one of the cheaper settings "
        "below, or freeze the largest blocks. estimate(model, loader) makes this table, with "
        f"passes and activations.\n\n{found}"
    )
