"""The prefix in the forward pass, through the attention interface of transformers.

An attention module asks its config which function computes the attention. A module with a prefix
is given a view of that config which answers with our function; ours puts the prefix before the keys
and values and calls the one the user chose. The config itself, and with it the model's masks and
everything that is saved, stays as it was.
"""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AttentionInterface, PretrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from posthoc_bhpeft.errors import PrefixUnsupportedError

#: Our function's name in the attention interface.
NAME = "bhpeft_prefix"

#: The child of an attention module that holds its prefix. Not `bhpeft_...`: peft reads names that
#: start so as parameter containers.
CHILD = "hybrid_prefix"

_REGISTRY = "ALL_ATTENTION_FUNCTIONS"

AttentionFunction = Callable[..., tuple[torch.Tensor, torch.Tensor | None]]


class AttentionConfigView:
    """The model's config, except that it names our function as the attention's implementation."""

    def __init__(self, config: PretrainedConfig) -> None:
        object.__setattr__(self, "original", config)

    def __getattr__(self, name: str) -> Any:
        if name == "_attn_implementation":
            return NAME
        if name == "original":  # a copy under construction has none yet
            raise AttributeError(name)
        return getattr(self.original, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.original, name, value)

    def __deepcopy__(self, memo: dict[int, Any]) -> AttentionConfigView:
        return AttentionConfigView(copy.deepcopy(self.original, memo))

    def __reduce__(self) -> tuple[Any, ...]:
        return AttentionConfigView, (self.original,)


def config_of(attention: nn.Module) -> Any:
    """The config an attention module holds, which torch's types do not know of."""
    return attention.config


def takes_prefix(attention: nn.Module) -> bool:
    """Whether a module's forward asks the attention interface of transformers for its function."""
    forward = inspect.unwrap(type(attention).forward)
    return hasattr(attention, "config") and _REGISTRY in forward.__code__.co_names


def key_value_shape(attention: nn.Module) -> tuple[int, int]:
    """Number of key-value heads H and their size d.

    Raises:
        PrefixUnsupportedError: If the module does not say.
    """
    config = config_of(attention)
    heads = _number(attention, "num_heads", "num_attention_heads", "n_heads") or _number(
        config, "num_attention_heads"
    )
    groups = _number(attention, "num_key_value_heads") or _number(config, "num_key_value_heads")
    head_dim = _number(
        attention, "head_dim", "attention_head_size", "key_value_proj_dim", "head_size"
    ) or _number(config, "head_dim")
    if head_dim is None and heads:
        head_dim = int(config.hidden_size) // heads
    if not heads or not head_dim:
        raise PrefixUnsupportedError(
            f"{type(attention).__name__} does not say how many heads of which size it has, so its "
            "prefix cannot be sized. Set num_virtual_tokens=0, or leave this module out of "
            "prefix_target_modules."
        )
    return groups or heads, head_dim


def prefix_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The user's attention with the module's prefix before its keys and values.

    Args:
        module: The attention module.
        query: (N, heads, T, d).
        key: (N, H, K, d).
        value: (N, H, K, d).
        attention_mask: (N or 1, 1 or heads, T, K), or (N, K) for flash attention, or None.
        kwargs: Passed on; `position_bias` of T5 is widened.

    Returns:
        What the user's attention function returns.
    """
    attend = _implementation(module, module.config.original._attn_implementation)
    pair = getattr(module, CHILD).keys_and_values(query.shape[0])
    if pair is not None:
        _refuse_packed(kwargs)
        tokens = pair[0].shape[2]
        attention_mask = _with_prefix(attention_mask, tokens, query, key, _causal(module, kwargs))
        if kwargs.get("position_bias") is not None:
            kwargs["position_bias"] = functional.pad(kwargs["position_bias"], (tokens, 0))
        key = torch.cat([pair[0].to(key.dtype), key], dim=2)
        value = torch.cat([pair[1].to(value.dtype), value], dim=2)
    return attend(module, query, key, value, attention_mask, **kwargs)


def register() -> None:
    """Make the function known to transformers; a second call replaces the first."""
    AttentionInterface.register(NAME, prefix_attention)


def _implementation(module: nn.Module, name: str) -> AttentionFunction:
    # "eager" is not in the registry: every modeling file has its own.
    if name in ALL_ATTENTION_FUNCTIONS:
        function: AttentionFunction = ALL_ATTENTION_FUNCTIONS[name]
        return function
    for file in _modeling_files(module):
        if hasattr(file, "eager_attention_forward"):
            eager: AttentionFunction = file.eager_attention_forward
            return eager
    raise PrefixUnsupportedError(
        f"No attention function {name!r} for {type(module).__name__}. Choose another with "
        "model.set_attn_implementation('sdpa'), or set num_virtual_tokens=0."
    )


def _modeling_files(module: nn.Module) -> list[Any]:
    return [sys.modules[kind.__module__] for kind in type(module).__mro__[:-1]]


def _causal(module: nn.Module, kwargs: dict[str, Any]) -> bool:
    given = kwargs.get("is_causal")
    return bool(getattr(module, "is_causal", False) if given is None else given)


def _refuse_packed(kwargs: dict[str, Any]) -> None:
    if kwargs.get("cu_seq_lens_q") is not None:
        raise PrefixUnsupportedError(
            "A prefix cannot be put before texts packed into one row (cu_seq_lens_q is set). Use "
            "padded batches, or num_virtual_tokens=0."
        )


def _with_prefix(
    mask: torch.Tensor | None, tokens: int, query: torch.Tensor, key: torch.Tensor, causal: bool
) -> torch.Tensor | None:
    """The mask with `tokens` columns that every position sees before the others."""
    if mask is None:
        return _causal_mask(tokens, query, key) if causal and query.shape[2] > 1 else None
    if not isinstance(mask, torch.Tensor):
        raise PrefixUnsupportedError(
            f"A prefix cannot widen a mask of type {type(mask).__name__} (flex attention). Use "
            "model.set_attn_implementation('sdpa'), or num_virtual_tokens=0."
        )
    # Boolean masks, and the (N, K) masks of flash attention, keep with 1; the others add 0.
    keep = 1 if mask.dtype == torch.bool or mask.dim() == 2 else 0
    return functional.pad(mask, (tokens, 0), value=keep)


def _causal_mask(tokens: int, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """What the fused attention would do by itself, written out: (1, 1, T, tokens + K).

    Row t sees columns 0 to t. Columns beyond T are the room of a static cache, still empty.
    """
    rows, columns = query.shape[2], key.shape[2]
    hidden = torch.ones(rows, columns, dtype=torch.bool, device=query.device).triu(1)
    mask = torch.zeros(rows, columns, dtype=query.dtype, device=query.device)
    mask = mask.masked_fill(hidden, torch.finfo(query.dtype).min)
    return functional.pad(mask, (tokens, 0))[None, None]


def _number(owner: object, *names: str) -> int | None:
    values = (getattr(owner, name, None) for name in names)
    return next((int(value) for value in values if isinstance(value, int)), None)
