"""Blocks of prefix keys and values: ours (`PrefixKV`) and those of peft's prefix tuning.

Both produce a tensor that already has a batch axis, the same virtual tokens in every row. The
gradient at that tensor is the per-sample gradient, so a block is `(T, D)`: virtual tokens by (heads
times head dimension). Tokens are *not* treated as independent rows: one `T x T (x) D x D` term a
layer and K or V.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft import PeftModel, PeftType
from torch import Tensor, nn

from posthoc_bhpeft.blocks.block import Block, Kind, MatrixView, Observation, by_row, join
from posthoc_bhpeft.errors import ModelError
from posthoc_bhpeft.hybrid import PrefixKV


def hybrid_prefix_blocks(path: str, module: nn.Module) -> Iterator[Block]:
    """Keys and values of a `PrefixKV` with weight `(2, H, T, d)`: two blocks `(T, H d)`."""
    if not isinstance(module, PrefixKV) or not module.weight.requires_grad:
        return
    _, heads, tokens, head_dim = module.weight.shape
    parameter = join(path, "weight")
    for part, label in enumerate(("key", "value")):
        view = MatrixView((tokens, heads * head_dim), (part,), (1, 0, 2))
        name = f"{parameter}[{label}]"
        yield Block(name, Kind.PREFIX, parameter, path, view, ExpandedKeyValue(part))


@dataclass(frozen=True)
class ExpandedKeyValue:
    """Tap of `PrefixKV`: the output is `(N, 2, H, T, d)`, part 0 the keys, part 1 the values."""

    part: int

    def __call__(self, module_input: Tensor, cotangent: Tensor, n_rows: int) -> Observation:
        gradient = cotangent[:, self.part].transpose(1, 2).flatten(2)  # (N k, T, D)
        return virtual_token_observation(gradient, n_rows)


def peft_prefix_blocks(path: str, module: nn.Module) -> Iterator[Block]:
    """Keys and values of peft's active prefix: per layer two column blocks of one embedding.

    The embedding is laid out as `(T, layers, key or value, D)`, and peft hands the model a cache
    made of it, a copy a row: the blocks are taped there.
    """
    if not isinstance(module, PeftModel):
        return
    config = module.active_peft_config
    if config.peft_type != PeftType.PREFIX_TUNING:
        return
    inside = f"prompt_encoder.{module.active_adapter}.embedding.weight"
    weight, parameter = module.get_parameter(inside), join(path, inside)
    base = join(path, cached_module(module))
    width = weight.shape[1] // (2 * config.num_layers)
    for index in range(2 * config.num_layers if weight.requires_grad else 0):
        columns = slice(index * width, (index + 1) * width)
        view = MatrixView((len(weight), width), (slice(None), columns))
        site = CachedState(index // 2, "values" if index % 2 else "keys")
        name = f"{parameter}[layer {site.layer} {site.part.removesuffix('s')}]"
        yield Block(name, Kind.PREFIX, parameter, base, view, observe_cached, site)


def cached_module(model: PeftModel) -> str:
    """Path of the module that peft calls with the cache: the base model, or its backbone."""
    accepted = inspect.signature(model.base_model.forward).parameters
    if "past_key_values" in accepted:
        return "base_model"
    return f"base_model.{model.transformer_backbone_name}"


@dataclass(frozen=True)
class CachedState:
    """Site: one layer's keys or values `(N, H, T, d)` in the cache that a model is given."""

    layer: int
    part: Literal["keys", "values"]

    def __call__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """From the keyword `past_key_values`."""
        layers = getattr(kwargs.get("past_key_values"), "layers", ())
        if len(layers) <= self.layer:
            raise ModelError(
                "The model was not given a cache with the prefix of each layer (past_key_values); "
                f"got {type(kwargs.get('past_key_values')).__name__}. peft reshapes the prefix for "
                "this family in a way that is not understood: train a hybrid (HybridConfig) "
                "instead, or freeze the prefix with model.prompt_encoder.requires_grad_(False)."
            )
        found: Tensor = getattr(layers[self.layer], self.part)
        return found


def observe_cached(module_input: Tensor, cotangent: Tensor, n_rows: int) -> Observation:
    """Tap of `CachedState`: heads side by side, one row a virtual token."""
    return virtual_token_observation(cotangent.transpose(1, 2).flatten(2), n_rows)


def virtual_token_observation(gradient: Tensor, n_rows: int) -> Observation:
    """`G_n` itself, `(N k, T, D)`, as `sum_t e_t g_nt^T` with unit vectors `e_t`."""
    tokens = gradient.shape[1]
    columns = by_row(gradient, n_rows)
    unit = torch.eye(tokens, dtype=gradient.dtype, device=gradient.device)
    repeats = columns.shape[1] // tokens
    return Observation(unit.repeat(repeats, 1).expand(n_rows, -1, -1), columns)
