"""Blocks of `nn.Linear`: LoRA A and B, adapter down and up projections, heads."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from posthoc_bhpeft.blocks.block import (
    Block,
    MatrixView,
    Observation,
    by_row,
    join,
    kind_of,
    ones_like_positions,
)


def linear_blocks(path: str, module: nn.Module) -> Iterator[Block]:
    """Weight `(out, in)` and bias `(out, 1)` of a linear layer, where trainable.

    Subclasses of `nn.Linear` are accepted only if they keep its `forward`: a hook on any other
    would take something else for the product `W x + b`.
    """
    if not isinstance(module, nn.Linear) or type(module).forward is not nn.Linear.forward:
        return
    kind = kind_of(path)
    if module.weight.requires_grad:
        name = join(path, "weight")
        view = MatrixView((module.out_features, module.in_features))
        yield Block(name, kind, name, path, view, observe_weight)
    if module.bias is not None and module.bias.requires_grad:
        name = join(path, "bias")
        yield Block(name, kind, name, path, MatrixView((module.out_features, 1)), observe_bias)


def observe_weight(module_input: Tensor, cotangent: Tensor, n_rows: int) -> Observation:
    """`G_n = sum_t g_nt a_nt^T` with `a` the layer's input and `g` the gradient at its output."""
    return Observation(by_row(cotangent, n_rows), by_row(module_input, n_rows))


def observe_bias(module_input: Tensor, cotangent: Tensor, n_rows: int) -> Observation:
    """`G_n = sum_t g_nt`."""
    rows = by_row(cotangent, n_rows)
    return Observation(rows, ones_like_positions(rows))
