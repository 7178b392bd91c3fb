"""Blocks of prefix keys and values: ours (`PrefixKV`) and those of peft's prefix tuning.

Both produce a tensor that already has a batch axis, by `expand` or by an embedding look-up of the
same virtual tokens in every row. The gradient at that tensor is the per-sample gradient, so a
block is `(T, D)`: virtual tokens by (heads times head dimension). Tokens are *not* treated as
independent rows: one `T x T (x) D x D` term a layer and K or V.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from peft import PeftModel, PeftType
from torch import Tensor, nn

from posthoc_bhpeft.blocks.block import Block, Kind, MatrixView, Observation, by_row, join
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
    """Keys and values of peft's prefix tuning: per layer two column blocks of one embedding.

    With `prefix_projection=True` there is a reparametrising network whose weights are a training
    device; those stay unclaimed, and `discover` says what to do.
    """
    if not isinstance(module, PeftModel):
        return
    for adapter, config in module.peft_config.items():
        if config.peft_type != PeftType.PREFIX_TUNING:
            continue
        site = f"prompt_encoder.{adapter}.embedding"
        projected = getattr(module.get_submodule(f"prompt_encoder.{adapter}"), "transform", None)
        weight = module.get_parameter(f"{site}.weight")
        if projected is None and weight.requires_grad:
            yield from embedding_columns(join(path, site), weight, config.num_layers)


def embedding_columns(site: str, weight: Tensor, n_layers: int) -> Iterator[Block]:
    """Blocks `(T, D)` of a prefix embedding laid out as `(T, layers, key or value, D)`."""
    tokens, total = weight.shape
    width = total // (2 * n_layers)
    parameter = join(site, "weight")
    for index in range(2 * n_layers):
        columns = slice(index * width, (index + 1) * width)
        view = MatrixView((tokens, width), (slice(None), columns))
        label = f"layer {index // 2} {'value' if index % 2 else 'key'}"
        name = f"{parameter}[{label}]"
        yield Block(name, Kind.PREFIX, parameter, site, view, LookedUpColumns(columns))


@dataclass(frozen=True)
class LookedUpColumns:
    """Tap of peft's prefix embedding: the output is `(N, T, columns)`, one row a virtual token."""

    columns: slice

    def __call__(self, module_input: Tensor, cotangent: Tensor, n_rows: int) -> Observation:
        return virtual_token_observation(cotangent[..., self.columns], n_rows)


def virtual_token_observation(gradient: Tensor, n_rows: int) -> Observation:
    """`G_n` itself, `(N k, T, D)`, as `sum_t e_t g_nt^T` with unit vectors `e_t`."""
    tokens = gradient.shape[1]
    columns = by_row(gradient, n_rows)
    unit = torch.eye(tokens, dtype=gradient.dtype, device=gradient.device)
    repeats = columns.shape[1] // tokens
    return Observation(unit.repeat(repeats, 1).expand(n_rows, -1, -1), columns)
