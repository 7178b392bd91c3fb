"""Blocks of `nn.Linear`: LoRA A and B, adapter down and up projections, heads."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from posthoc_bhpeft.blocks.block import (
    Block,
    MatrixView,
    Observation,
    block_at,
    by_row,
)


def linear_blocks(path: str, module: nn.Module) -> Iterator[Block]:
    """Weight `(out, in)` and bias `(out, 1)` of a linear layer, where trainable.

    Subclasses of `nn.Linear` are accepted only if they keep its `forward`: a hook on any other
    would take something else for the product `W x + b`.
    """
    if not isinstance(module, nn.Linear) or type(module).forward is not nn.Linear.forward:
        return
    if module.weight.requires_grad:
        view = MatrixView((module.out_features, module.in_features))
        yield block_at(path, "weight", view, observe_weight)
    if module.bias is not None and module.bias.requires_grad:
        yield block_at(path, "bias", MatrixView((module.out_features, 1)), observe_bias)


def observe_weight(module_input: Tensor, cotangent: Tensor, n_rows: int) -> Observation:
    """`G_n = sum_t g_nt a_nt^T` with `a` the layer's input and `g` the gradient at its output."""
    return Observation(by_row(cotangent, n_rows), by_row(module_input, n_rows))


def observe_bias(module_input: Tensor, cotangent: Tensor, n_rows: int) -> Observation:
    """`G_n = sum_t g_nt`."""
    return Observation.of_vector(by_row(cotangent, n_rows))
