"""Blocks of `nn.LayerNorm`: scale and shift, for LN tuning and modules saved whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch.nn.functional as F
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
from posthoc_bhpeft.blocks.linear import observe_bias


def layer_norm_blocks(path: str, module: nn.Module) -> Iterator[Block]:
    """Scale and shift `(p, 1)` of a layer normalisation over its last axis, where trainable."""
    if not isinstance(module, nn.LayerNorm) or len(module.normalized_shape) != 1:
        return
    view = MatrixView((module.normalized_shape[0], 1))
    if module.weight is not None and module.weight.requires_grad:
        name = join(path, "weight")
        yield Block(name, kind_of(path), name, path, view, NormScale(module.eps))
    if module.bias is not None and module.bias.requires_grad:
        name = join(path, "bias")
        yield Block(name, kind_of(path), name, path, view, observe_bias)


@dataclass(frozen=True)
class NormScale:
    """`G_n = sum_t g_nt * z_nt` with `z` the input normalised to mean 0 and variance 1."""

    eps: float

    def __call__(self, module_input: Tensor, cotangent: Tensor, n_rows: int) -> Observation:
        normalised = F.layer_norm(module_input, module_input.shape[-1:], eps=self.eps)
        rows = by_row(cotangent * normalised, n_rows)
        return Observation(rows, ones_like_positions(rows))
