"""Blocks of VeRA (Kopiczko et al. 2024, https://arxiv.org/abs/2310.11454): two learnt vectors.

The layer adds `b * B (d * A x)` with random, frozen `A` and `B` that all layers share. With `g` the
gradient at its output,

    b:  G_n = sum_t g_nt * B (d * A x_nt)
    d:  G_n = sum_t (B^T (b * g_nt)) * (A x_nt)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, cast

from peft.tuners._buffer_dict import BufferDict
from peft.tuners.vera import VeraLayer
from torch import Tensor, nn

from posthoc_bhpeft.blocks.block import (
    Block,
    MatrixView,
    ModuleTap,
    Observation,
    block_at,
    by_row,
)

Part = Literal["vera_lambda_b", "vera_lambda_d"]
PARTS: tuple[Part, ...] = ("vera_lambda_b", "vera_lambda_d")


def vera_blocks(path: str, module: nn.Module) -> Iterator[Block]:
    """`b` `(p, 1)` and `d` `(r, 1)` of every active adapter."""
    if not isinstance(module, VeraLayer):
        return
    for adapter in module.active_adapters:
        for part in PARTS:
            container = getattr(module, part)
            if adapter in container and container[adapter].requires_grad:
                view = MatrixView((container[adapter].numel(), 1))
                yield block_at(path, f"{part}.{adapter}", view, VeraVector(part, adapter))


@dataclass(frozen=True)
class VeraVector(ModuleTap):
    """`G_n` of one of the two vectors."""

    part: Part
    adapter: str

    def observe(
        self, module: nn.Module, module_input: Tensor, cotangent: Tensor, n_rows: int
    ) -> Observation:
        layer = cast(VeraLayer, module)
        # Every layer uses the corner of the shared matrices that fits it.
        shared_a, shared_b = cast(BufferDict, layer.vera_A), cast(BufferDict, layer.vera_B)
        down = shared_a[self.adapter][:, : layer.in_features].to(cotangent)
        up = shared_b[self.adapter][: layer.out_features].to(cotangent)
        between = by_row(module_input, n_rows) @ down.T
        above = by_row(cotangent, n_rows)
        if self.part == "vera_lambda_b":
            rows = above * ((between * layer.vera_lambda_d[self.adapter].to(cotangent)) @ up.T)
        else:
            rows = ((above * layer.vera_lambda_b[self.adapter].to(cotangent)) @ up) * between
        return Observation.of_vector(rows)
