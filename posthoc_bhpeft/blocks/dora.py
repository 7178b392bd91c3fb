"""Blocks of DoRA's magnitudes (Liu et al. 2024, https://arxiv.org/abs/2402.09353).

The layer computes `m * (V x) / c + b` with `V = W + s B A` and `c = |V|`, the length of each row.
In the backward pass `c` is a constant (section 4.3 of the paper), for `A` and `B` as for `m`:

    G_n = sum_t g_nt * (V x_nt) / c

`A` and `B` are linear layers like any other, and `s m / c` is in the gradient at their outputs.
An embedding is the same with `V^T` looked up; see `embedding` for its `A` and `B`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch.nn.functional as F
from peft.tuners.lora.layer import Embedding, LoraLayer
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn

from posthoc_bhpeft.blocks.block import (
    Block,
    MatrixView,
    ModuleTap,
    Observation,
    block_at,
    by_row,
)


def dora_blocks(path: str, module: nn.Module) -> Iterator[Block]:
    """The magnitudes `(p, 1)` of a linear layer or of an embedding.

    Of several DoRA adapters active together each scales what those before it gave: no block then.
    """
    # A convolution has neither rows of positions nor this attribute.
    if not isinstance(module, LoraLayer) or not hasattr(module, "fan_in_fan_out"):
        return
    adapters = list(module.active_adapters)
    if len(adapters) != 1 or adapters[0] not in module.lora_magnitude_vector:
        return
    magnitude = magnitude_of(module, adapters[0])
    if magnitude.requires_grad:
        inside = f"lora_magnitude_vector.{adapters[0]}.weight"
        view = MatrixView((magnitude.numel(), 1))
        yield block_at(path, inside, view, DoraMagnitude(adapters[0]))


@dataclass(frozen=True)
class DoraMagnitude(ModuleTap):
    """`G_n` of the magnitudes."""

    adapter: str

    def observe(
        self, module: nn.Module, module_input: Tensor, cotangent: Tensor, n_rows: int
    ) -> Observation:
        layer = cast(LoraLayer, module)
        whole = direction(layer, self.adapter).to(cotangent)
        found = (
            looked_up(layer, self.adapter, module_input).to(cotangent)
            if isinstance(layer, Embedding)
            else module_input @ whole.T
        )
        rows = by_row(cotangent * found / whole.norm(dim=1), n_rows)
        return Observation.of_vector(rows)


def direction(layer: LoraLayer, adapter: str) -> Tensor:
    """`V = W + s B A`, `(p, q)`; of an embedding `q` is the size of the vocabulary."""
    weight = dequantize_module_weight(layer.get_base_layer())
    if isinstance(layer, Embedding):
        down, up = layer.lora_embedding_A[adapter], layer.lora_embedding_B[adapter]
    else:
        down, up = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    flipped = isinstance(layer, Embedding) or vars(layer)["fan_in_fan_out"]
    base = weight.T if flipped else weight
    whole: Tensor = base.to(up) + layer.scaling[adapter] * (up @ down)
    return whole


def looked_up(layer: Embedding, adapter: str, ids: Tensor) -> Tensor:
    """`V^T` at each token; some families scale what they look up, and peft only the base's part."""
    down, up = layer.lora_embedding_A[adapter], layer.lora_embedding_B[adapter]
    found: Tensor = layer.get_base_layer().forward(ids)
    learnt: Tensor = layer.scaling[adapter] * F.embedding(ids, down.T) @ up.T
    return found + learnt


def magnitude_scale(layer: Embedding, adapter: str) -> Tensor | None:
    """`m / c` of an embedding `(p,)`, which its `A` and `B` are behind too; None without DoRA."""
    if adapter not in layer.lora_magnitude_vector:
        return None
    lengths: Tensor = direction(layer, adapter).norm(dim=1)
    return magnitude_of(layer, adapter) / lengths


def magnitude_of(layer: LoraLayer, adapter: str) -> nn.Parameter:
    """`m`, `(p,)`."""
    return layer.lora_magnitude_vector[adapter].get_parameter("weight")
