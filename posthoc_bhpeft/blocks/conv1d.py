"""Blocks of transformers' `Conv1D`, GPT-2's linear layer, whose weight is stored transposed."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from transformers.pytorch_utils import Conv1D

from posthoc_bhpeft.blocks.block import Block, MatrixView, join, kind_of
from posthoc_bhpeft.blocks.linear import observe_bias, observe_weight


def conv1d_blocks(path: str, module: nn.Module) -> Iterator[Block]:
    """Weight `(in, out)`, seen as `(out, in)`, and bias `(out, 1)`, where trainable."""
    if not isinstance(module, Conv1D):
        return
    n_in, n_out = module.weight.shape
    if module.weight.requires_grad:
        name = join(path, "weight")
        view = MatrixView((n_out, n_in), order=(1, 0))
        yield Block(name, kind_of(path), name, path, view, observe_weight)
    if module.bias.requires_grad:
        name = join(path, "bias")
        yield Block(name, kind_of(path), name, path, MatrixView((n_out, 1)), observe_bias)
