"""Putting a prefix on an attention module, and taking it off again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from posthoc_bhpeft.hybrid.attention import CHILD, AttentionConfigView
from posthoc_bhpeft.hybrid.prefix import HybridPrefix


def attach(attention: Any, prefix: HybridPrefix) -> None:
    """Make `prefix` a child of the attention and point the attention at our function.

    A child, not a wrapper: the base model's parameter names stay what they are.
    """
    setattr(attention, CHILD, prefix)
    attention.config = AttentionConfigView(attention.config)


def detach(attention: Any) -> None:
    """Undo `attach` and `listen`."""
    prefix = getattr(attention, CHILD)
    remove_hooks(attention, lambda hook: getattr(hook, "__self__", None) is prefix)
    delattr(attention, CHILD)
    attention.config = attention.config.original


def listen(attention: nn.Module, prefix: HybridPrefix) -> None:
    """Let a prefix with gates see the attention's input; a second call does nothing."""
    hooks = attention._forward_pre_hooks.values()
    if not any(getattr(hook, "__self__", None) is prefix for hook in hooks):
        attention.register_forward_pre_hook(prefix.keep_input, with_kwargs=True)


def remove_hooks(module: nn.Module, ours: Callable[[Any], bool]) -> None:
    """Remove the forward pre-hooks that `ours` picks.

    By looking for them, not by torch's handles: a handle does not survive a copy or a pickle.
    """
    for key in [key for key, hook in module._forward_pre_hooks.items() if ours(hook)]:
        del module._forward_pre_hooks[key]
        module._forward_pre_hooks_with_kwargs.pop(key, None)
