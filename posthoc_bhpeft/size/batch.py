r"""What one batch needs beside the model: measured on one row, at no cost on the meta device.

A forward pass keeps the tensors that a backward pass will read; `saved_tensors_hooks` sees every
one of them, so their bytes are counted, not guessed. All of them grow in proportion to the rows.
On the way back the gradient at one tapped module at a time is there, `N T_m p_m` numbers, and the
gradient of one of its blocks, `N p q`.

Not counted: workspace of kernels, what the allocator holds back, tensors that a layer makes and
gives up within its own forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from posthoc_bhpeft.batches import (
    Inputs,
    call,
    device_of,
    evaluating,
    logits_of,
    move,
    scales,
    split_batch,
)
from posthoc_bhpeft.blocks import Block
from posthoc_bhpeft.errors import ConfigError

SINGLE = 4


@dataclass(frozen=True)
class BatchBytes:
    """Of one batch.

    Attributes:
        rows: `N`.
        positions: Tokens of a row, with padding; 1 where rows have none.
        activations_a_row: What the forward pass keeps of one for the backward pass.
        tapped_a_row: Gradients of one row at the output of each tapped module, in float32 or wider.
        outputs: Shape of one row's outputs.
    """

    rows: int
    positions: int
    activations_a_row: int
    tapped_a_row: Mapping[str, int] = field(repr=False)
    outputs: tuple[int, ...]

    @property
    def activations(self) -> int:
        """Of all rows."""
        return self.rows * self.activations_a_row

    def cotangent(self, blocks: Sequence[Block]) -> int:
        """The largest gradient at a module of these blocks; one is there at a time."""
        return self.rows * max(self.tapped_a_row[block.module] for block in blocks)

    def summing(self, blocks: Sequence[Block]) -> int:
        """Beside the sums, while the curvature of these blocks is fitted."""
        gradient = self.rows * SINGLE * max(block.size for block in blocks)
        return self.activations + self.cotangent(blocks) + gradient


def measure_batch(
    model: nn.Module, blocks: Sequence[Block], inputs: Inputs, rows: int
) -> BatchBytes:
    """One forward pass of one row, counted.

    Args:
        model: Unchanged; on the meta device nothing is computed.
        blocks: Whose modules are tapped.
        inputs: Of one row.
        rows: `N`, of a batch.
    """
    weights = {tensor.untyped_storage()._cdata for tensor in stored_tensors(model)}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            # Held on to, so that its address means no other meanwhile.
            kept[storage._cdata] = storage
        return tensor

    with (
        evaluating(model),
        torch.enable_grad(),
        tapped_bytes(model, blocks) as tapped,
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        outputs = logits_of(call(model, move(inputs, device_of(model))))
    return BatchBytes(
        rows,
        positions_of(inputs),
        sum(storage.nbytes() for storage in kept.values()),
        tapped,
        tuple(outputs.shape[1:]) or (1,),
    )


@contextmanager
def tapped_bytes(model: nn.Module, blocks: Sequence[Block]) -> Iterator[dict[str, int]]:
    """Bytes of the gradients at the outputs of the blocks' modules, by module."""
    found: dict[str, int] = {}
    modules = dict(model.named_modules())
    with ExitStack() as hooks:
        for path in dict.fromkeys(block.module for block in blocks):

            def count(_: nn.Module, __: Any, output: Any, path: str = path) -> None:
                if isinstance(output, Tensor):
                    # Half precision is widened, beside what it was.
                    size = output.element_size()
                    each = size if size >= SINGLE else size + SINGLE
                    found[path] = found.get(path, 0) + each * output.numel()

            hooks.callback(modules[path].register_forward_hook(count).remove)
        yield found


def stored_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Parameters, buffers and scales: there already, whatever a pass keeps of them."""
    yield from model.parameters()
    yield from model.buffers()
    yield from scales(model)


def one_row(batch: Any) -> Inputs:
    """The first row of a batch, its labels left out."""
    inputs, _ = split_batch(batch)
    if isinstance(inputs, Tensor):
        return inputs[:1].clone()
    rows = rows_of(inputs)
    # What has no axis of rows stays as it is. Copied: a part of a batch has the storage of all.
    return {
        name: value[:1].clone() if isinstance(value, Tensor) and len(value) == rows else value
        for name, value in inputs.items()
    }


def rows_of(inputs: Inputs) -> int:
    """Rows of a batch."""
    if isinstance(inputs, Tensor):
        return len(inputs)
    return next((len(v) for v in inputs.values() if isinstance(v, Tensor) and v.dim()), 1)


def positions_of(inputs: Inputs) -> int:
    """Tokens of a row, as far as inputs tell."""
    if isinstance(inputs, Mapping):
        ids = inputs.get("input_ids")
        return ids.shape[-1] if isinstance(ids, Tensor) else 1
    return inputs.shape[1] if inputs.dim() > 2 else 1


def text_row(model: nn.Module, length: int) -> Inputs:
    """A row of token ids for a transformers model, no longer than its positions.

    Raises:
        ConfigError: If the model has no vocabulary.
    """
    config = getattr(model, "config", None)
    if getattr(config, "vocab_size", None) is None:
        raise ConfigError(
            f"What {type(model).__name__} takes is not known, so no batch can be measured without "
            "one. Pass the loader: estimate(model, loader)."
        )
    longest = getattr(config, "max_position_embeddings", None) or length
    return {"input_ids": torch.ones(1, min(length, longest), dtype=torch.long)}
