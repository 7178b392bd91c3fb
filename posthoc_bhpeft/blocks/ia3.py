"""Blocks of IA3 (Liu et al. 2022, https://arxiv.org/abs/2205.05638): vectors that scale features.

A layer computes `l * (W x + b)`, or `W (l * x) + b` where peft calls it feed-forward. With `g` the
gradient at the layer's output,

    G_n = sum_t g_nt * (W x_nt + b),    feed-forward:  G_n = sum_t (W^T g_nt) * x_nt

Neither factor is divided out of what the layer computed, since a learnt scale may be zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from peft.tuners.ia3 import IA3Layer
from torch import Tensor, nn

from posthoc_bhpeft.blocks.block import (
    Block,
    MatrixView,
    ModuleTap,
    Observation,
    block_at,
    by_row,
)


def ia3_blocks(path: str, module: nn.Module) -> Iterator[Block]:
    """The active vectors `(p, 1)` of a linear layer; `p` is its outputs, or its inputs."""
    if not isinstance(module, IA3Layer):
        return
    for adapter in module.active_adapters:
        vector = module.ia3_l.get(adapter, None)
        # Convolutions have vectors with more axes, and inputs that are no rows of positions.
        if vector is not None and vector.dim() == 2 and vector.requires_grad:
            view = MatrixView((vector.numel(), 1))
            yield block_at(path, f"ia3_l.{adapter}", view, IA3Vector(adapter))


@dataclass(frozen=True)
class IA3Vector(ModuleTap):
    """`G_n` of one adapter's vector; the vectors of others that are active multiply with it."""

    adapter: str

    def observe(
        self, module: nn.Module, module_input: Tensor, cotangent: Tensor, n_rows: int
    ) -> Observation:
        layer = cast(IA3Layer, module)
        base = layer.get_base_layer()
        if layer.is_feedforward:
            scaled = pull_back(base, module_input, cotangent) * module_input
        else:
            scaled = cotangent * run(base, module_input).to(cotangent)
        for other in layer.active_adapters:
            if other != self.adapter and other in layer.ia3_l:
                scaled = scaled * layer.ia3_l[other].flatten().to(scaled)
        rows = by_row(scaled, n_rows)
        return Observation.of_vector(rows)


def run(layer: nn.Module, inputs: Tensor) -> Tensor:
    """The output of a frozen layer, past its hooks; quantised and half-precision ones too."""
    stored = (tensor.dtype for tensor in layer.parameters() if tensor.is_floating_point())
    found: Tensor = layer.forward(inputs.to(next(stored, inputs.dtype)))
    return found


def pull_back(layer: nn.Module, inputs: Tensor, cotangent: Tensor) -> Tensor:
    """`W^T g` of a frozen affine layer, from autograd, so that any storage of `W` will do."""
    with torch.enable_grad():
        probe = inputs.detach().requires_grad_()
        output = run(layer, probe)
    return torch.autograd.grad(output, probe, cotangent.to(output))[0]
