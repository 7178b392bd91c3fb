"""Blocks of transformers' `Conv1D`, GPT-2's linear layer, whose weight is stored transposed."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from transformers.pytorch_utils import Conv1D

from posthoc_bhpeft.blocks.block import Block, MatrixView, block_at
from posthoc_bhpeft.blocks.linear import observe_bias, observe_weight


def conv1d_blocks(path: str, module: nn.Module) -> Iterator[Block]:
    """Weight `(in, out)`, seen as `(out, in)`, and bias `(out, 1)`, where trainable."""
    if not isinstance(module, Conv1D):
        return
    n_in, n_out = module.weight.shape
    if module.weight.requires_grad:
        view = MatrixView((n_out, n_in), order=(1, 0))
        yield block_at(path, "weight", view, observe_weight)
    if module.bias.requires_grad:
        yield block_at(path, "bias", MatrixView((n_out, 1)), observe_bias)
