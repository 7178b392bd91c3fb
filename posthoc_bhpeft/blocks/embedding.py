"""Blocks of embeddings: LoRA's `A` and `B`, and single tokens that were trained.

LoRA adds `s B A e_x` at a token `x`, a column of `A` looked up. With `g` the output's gradient,

    A:  G_n = s sum_t (B^T g_nt) e_xnt^T        B:  G_n = s sum_t g_nt (A e_xnt)^T

and a trained token, a row of the embedding itself, has `G_n = sum_t [x_nt is that token] g_nt`.

`A` has a column for each token of the vocabulary. A factor of that side would be too large, so it
is split into blocks of at most `TOKENS` columns; tokens of different blocks are independent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import Embedding
from peft.tuners.trainable_tokens import TrainableTokensLayer
from torch import Tensor, nn

from posthoc_bhpeft.blocks.block import (
    Block,
    MatrixView,
    ModuleTap,
    Observation,
    block_at,
    by_row,
    join,
    kind_of,
)
from posthoc_bhpeft.blocks.dora import magnitude_scale

TOKENS = 256
"""Columns of one block of `A`: 120 blocks for a vocabulary of 30 thousand, 8 million numbers."""


def lora_embedding_blocks(path: str, module: nn.Module) -> Iterator[Block]:
    """`A` `(r, vocabulary)` in blocks of columns, and `B` `(p, r)`, of every active adapter."""
    if not isinstance(module, Embedding):
        return
    for adapter in module.active_adapters:
        if adapter not in module.lora_embedding_A:
            continue
        down, up = module.lora_embedding_A[adapter], module.lora_embedding_B[adapter]
        if down.requires_grad:
            yield from token_blocks(path, adapter, *down.shape)
        if up.requires_grad:
            view = MatrixView((up.shape[0], up.shape[1]))
            yield block_at(path, f"lora_embedding_B.{adapter}", view, EmbeddingUp(adapter))


def token_blocks(path: str, adapter: str, rank: int, vocabulary: int) -> Iterator[Block]:
    """`A` as blocks of at most `TOKENS` columns."""
    parameter = join(path, f"lora_embedding_A.{adapter}")
    for first in range(0, vocabulary, TOKENS):
        last = min(first + TOKENS, vocabulary)
        view = MatrixView((rank, last - first), (slice(None), slice(first, last)))
        name = f"{parameter}[tokens {first} to {last - 1}]"
        yield Block(
            name, kind_of(parameter), parameter, path, view, EmbeddingDown(adapter, first, last)
        )


@dataclass(frozen=True)
class EmbeddingUp(ModuleTap):
    """`G_n` of `B`."""

    adapter: str

    def observe(
        self, module: nn.Module, module_input: Tensor, cotangent: Tensor, n_rows: int
    ) -> Observation:
        layer = cast(Embedding, module)
        found = F.embedding(module_input, layer.lora_embedding_A[self.adapter].T)
        rows = by_row(behind(layer, self.adapter, cotangent), n_rows)
        return Observation(rows, by_row(found.to(cotangent), n_rows))


@dataclass(frozen=True)
class EmbeddingDown(ModuleTap):
    """`G_n` of the columns `first` to `last - 1` of `A`."""

    adapter: str
    first: int
    last: int

    def observe(
        self, module: nn.Module, module_input: Tensor, cotangent: Tensor, n_rows: int
    ) -> Observation:
        layer = cast(Embedding, module)
        up = layer.lora_embedding_B[self.adapter].to(cotangent)
        tokens = torch.arange(self.first, self.last, device=module_input.device)
        columns = one_hot(module_input, tokens, padding_of(layer), n_rows)
        rows = by_row(behind(layer, self.adapter, cotangent) @ up, n_rows)
        return Observation(rows, columns.to(rows))


def behind(layer: Embedding, adapter: str, cotangent: Tensor) -> Tensor:
    """`s g`, with the magnitudes of DoRA and the scale of Gemma's embedding where there are any."""
    above: Tensor = cotangent * layer.scaling[adapter]
    magnitude = magnitude_scale(layer, adapter)
    if magnitude is not None:
        return above * magnitude.to(above)
    scale: Tensor | None = layer._get_embed_scale()
    return above if scale is None else above * scale.to(above)


def trained_token_blocks(path: str, module: nn.Module) -> Iterator[Block]:
    """The rows `(tokens, d)` of an embedding that peft's trainable tokens replace."""
    if not isinstance(module, TrainableTokensLayer) or not isinstance(
        module.get_base_layer(), nn.Embedding
    ):
        return
    # An output layer that is tied to the embedding shares its tensor, which is then in two modules.
    for adapter in module.active_adapters if module.tied_adapter is None else ():
        weight = module.trainable_tokens_delta[adapter]
        if weight.requires_grad:
            view = MatrixView((weight.shape[0], weight.shape[1]))
            yield block_at(path, f"trainable_tokens_delta.{adapter}", view, TrainedTokens(adapter))


@dataclass(frozen=True)
class TrainedTokens(ModuleTap):
    """`G_n` of the trained rows."""

    adapter: str

    def observe(
        self, module: nn.Module, module_input: Tensor, cotangent: Tensor, n_rows: int
    ) -> Observation:
        layer = cast(TrainableTokensLayer, module)
        tokens = torch.tensor(layer.token_indices[self.adapter], device=module_input.device)
        scale = layer._get_embed_scale()
        above = cotangent if scale is None else cotangent * scale.to(cotangent)
        rows = one_hot(module_input, tokens, padding_of(layer), n_rows)
        return Observation(rows.to(above), by_row(above, n_rows))


def one_hot(ids: Tensor, tokens: Tensor, padding: int | None, n_rows: int) -> Tensor:
    """`(N, T, tokens)`: which of the tokens stands where; padding is looked up, but not learnt."""
    hits = ids.reshape(n_rows, -1, 1) == tokens
    return hits if padding is None else hits & (tokens != padding)


def padding_of(layer: Embedding | TrainableTokensLayer) -> int | None:
    """The token whose embedding gets no gradient."""
    return cast(nn.Embedding, layer.get_base_layer()).padding_idx
