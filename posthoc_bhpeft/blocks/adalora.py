"""Blocks of AdaLoRA (Zhang et al. 2023, https://arxiv.org/abs/2303.10512): `B diag(e) A`.

With `c` the layer's scaling over its rank, `x` its input and `g` the gradient at its output,

    A:  G_n = c sum_t (e * B^T g_nt) x_nt^T
    e:  G_n = c sum_t (B^T g_nt) * (A x_nt)
    B:  G_n = c sum_t g_nt (e * A x_nt)^T

Ranks that training pruned have `e = 0`, so their rows of `A` and columns of `B` have no curvature.
A checkpoint that records its ranks (`rank_pattern`) is loaded without them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, cast

from peft.tuners.adalora import AdaLoraLayer
from torch import Tensor, nn

from posthoc_bhpeft.blocks.block import (
    Block,
    MatrixView,
    ModuleTap,
    Observation,
    block_at,
    by_row,
)

Part = Literal["lora_A", "lora_E", "lora_B"]
PARTS: tuple[Part, ...] = ("lora_A", "lora_E", "lora_B")


def adalora_blocks(path: str, module: nn.Module) -> Iterator[Block]:
    """`A` `(r, q)`, `e` `(r, 1)` and `B` `(p, r)` of every active adapter of a linear layer."""
    # An adapted convolution has the same tensors, but its inputs are no rows of positions.
    if not isinstance(module, AdaLoraLayer) or isinstance(module.get_base_layer(), nn.Conv2d):
        return
    for adapter in module.active_adapters:
        for part in PARTS:
            container = getattr(module, part)
            # A layer whose ranks were all pruned has tensors without elements.
            if adapter not in container or not container[adapter].numel():
                continue
            if container[adapter].requires_grad:
                n_rows, n_columns = container[adapter].shape
                view = MatrixView((n_rows, n_columns))
                yield block_at(path, f"{part}.{adapter}", view, SVDFactor(part, adapter))


@dataclass(frozen=True)
class SVDFactor(ModuleTap):
    """`G_n` of one of the three tensors."""

    part: Part
    adapter: str

    def observe(
        self, module: nn.Module, module_input: Tensor, cotangent: Tensor, n_rows: int
    ) -> Observation:
        layer = cast(AdaLoraLayer, module)
        down, weights, up = (getattr(layer, part)[self.adapter].to(cotangent) for part in PARTS)
        scale = layer.scaling[self.adapter] / (layer.ranknum[self.adapter].to(cotangent) + 1e-5)
        above, given = by_row(cotangent, n_rows) * scale, by_row(module_input, n_rows)
        if self.part == "lora_B":
            return Observation(above, (given @ down.T) * weights.T)
        if self.part == "lora_A":
            return Observation((above @ up) * weights.T, given)
        rows = (above @ up) * (given @ down.T)
        return Observation.of_vector(rows)
