"""Blocks of normalisations: scale and shift, for LN tuning and for modules saved whole."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posthoc_bhpeft.blocks.block import (
    Block,
    MatrixView,
    ModuleTap,
    Observation,
    block_at,
    by_row,
)
from posthoc_bhpeft.blocks.linear import observe_bias


def layer_norm_blocks(path: str, module: nn.Module) -> Iterator[Block]:
    """Scale and shift `(p, 1)` of a layer normalisation over its last axis, where trainable."""
    if not isinstance(module, nn.LayerNorm) or len(module.normalized_shape) != 1:
        return
    view = MatrixView((module.normalized_shape[0], 1))
    if module.weight is not None and module.weight.requires_grad:
        yield block_at(path, "weight", view, NormScale(module.eps))
    if module.bias is not None and module.bias.requires_grad:
        yield block_at(path, "bias", view, observe_bias)


def rms_norm_blocks(path: str, module: nn.Module) -> Iterator[Block]:
    """Scale `(p, 1)` of a root-mean-square normalisation, where trainable.

    Every family of transformers has a class of its own, named `...RMSNorm` but for T5's, and some
    multiply by `1 + w`; they share one vector and nothing else that could be trained.
    """
    named = type(module).__name__.endswith("RMSNorm") or type(module).__name__ == "T5LayerNorm"
    weight = dict(module.named_parameters()).get("weight")
    if not named or weight is None or weight.dim() != 1 or len(list(module.parameters())) != 1:
        return
    if weight.requires_grad:
        yield block_at(path, "weight", MatrixView((len(weight), 1)), RMSNormScale())


@dataclass(frozen=True)
class NormScale:
    """`G_n = sum_t g_nt * z_nt` with `z` the input normalised to mean 0 and variance 1."""

    eps: float

    def __call__(self, module_input: Tensor, cotangent: Tensor, n_rows: int) -> Observation:
        normalised = F.layer_norm(module_input, module_input.shape[-1:], eps=self.eps)
        rows = by_row(cotangent * normalised, n_rows)
        return Observation.of_vector(rows)


@dataclass(frozen=True)
class RMSNormScale(ModuleTap):
    """`G_n = sum_t g_nt * (f(x_nt; 1) - f(x_nt; 0))`, where `f(x; w)` is affine in each `w_i`.

    The difference is the normalised input, with the class's own epsilon and in its own precision.
    """

    def observe(
        self, module: nn.Module, module_input: Tensor, cotangent: Tensor, n_rows: int
    ) -> Observation:
        one, none = (run_with_scale(module, module_input, value) for value in (1.0, 0.0))
        rows = by_row(cotangent * (one - none).to(cotangent), n_rows)
        return Observation.of_vector(rows)


def run_with_scale(module: nn.Module, inputs: Tensor, value: float) -> Tensor:
    """The output of a normalisation with every scale at `value`, on a copy without hooks."""
    replica, weight = copy.copy(module), module.get_parameter("weight")
    vars(replica)["_parameters"] = {"weight": torch.full_like(weight, value)}
    found: Tensor = replica.forward(inputs)
    return found
