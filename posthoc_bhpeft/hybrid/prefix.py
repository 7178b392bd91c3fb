"""Trainable keys and values put before those of an attention module."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from posthoc_bhpeft.hybrid.bottleneck import weight_of
from posthoc_bhpeft.hybrid.config import HybridConfig
from posthoc_bhpeft.hybrid.gates import GateMask, run_gate
from posthoc_bhpeft.hybrid.layer import HybridLayer, dropout
from posthoc_bhpeft.hybrid.plan import Role
from posthoc_bhpeft.hybrid.relay import Relay


class PrefixKV(nn.Module):
    """The keys and values themselves; `weight` is (2, H, T, d) for H key-value heads of size d."""

    def __init__(self, heads: int, tokens: int, head_dim: int, std: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, heads, tokens, head_dim) * std)

    def forward(self, batch_size: int) -> torch.Tensor:
        """One view of the weight for each input, (N, 2, H, T, d).

        The gradient of this tensor has a batch axis, so it holds the gradient of every input.
        """
        return self.weight.unsqueeze(0).expand(batch_size, -1, -1, -1, -1)


class HybridPrefix(nn.Module, HybridLayer):
    """A child of an attention module; the attention function reads it (`attention.py`).

    With gates, keys and values are multiplied by the gate of the attention's input.

    Args:
        adapter_name: The first adapter.
        config: Its sizes.
        role: Where it finds the mask for its gate.
        shape: Key-value heads H and their size d.
        like: Any weight of the attention, for device and dtype.
    """

    adapter_layer_names = ("bhpeft_prefix", "bhpeft_gate_prefix")
    other_param_names = ("bhpeft_prefix_dropout",)

    def __init__(
        self,
        adapter_name: str,
        config: HybridConfig,
        role: Role,
        shape: tuple[int, int],
        like: torch.Tensor,
    ) -> None:
        super().__init__()
        self.shape = shape
        self._start(adapter_name)
        self.bhpeft_prefix = nn.ModuleDict()
        self.bhpeft_gate_prefix = nn.ModuleDict()
        self.bhpeft_prefix_dropout = nn.ModuleDict()
        self.gate_mask: GateMask | None = None
        self.input = Relay()
        self.update_layer(adapter_name, config, role, like)

    def update_layer(
        self, adapter_name: str, config: HybridConfig, role: Role, like: torch.Tensor
    ) -> None:
        """Add the keys and values of one more adapter."""
        heads, head_dim = self.shape
        prefix = PrefixKV(heads, config.num_virtual_tokens, head_dim, config.prefix_init_std)
        self.bhpeft_prefix[adapter_name] = prefix
        self.bhpeft_prefix_dropout[adapter_name] = dropout(config.prefix_dropout)
        if config.gates:
            self.bhpeft_gate_prefix[adapter_name] = nn.Linear(role.width, 1)
        self.gate_mask = role.gate_mask or self.gate_mask
        self._move(adapter_name, like)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _move(self, adapter_name: str, like: torch.Tensor) -> None:
        # peft's own helper looks at a base layer, and there is none here.
        dtype = like.dtype if like.is_floating_point() else None
        for name in self.adapter_layer_names:
            container = getattr(self, name)
            # With low_cpu_mem_usage the values, and where they live, come with the checkpoint.
            if adapter_name in container and not weight_of(container[adapter_name]).is_meta:
                container[adapter_name].to(device=like.device, dtype=dtype)

    def keep_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep the attention's input for the gate (a forward pre-hook on the attention)."""
        if not self.disable_adapters and any(n in self.bhpeft_gate_prefix for n in self._names()):
            self.input.put(args[0] if args else kwargs["hidden_states"])

    def keys_and_values(self, batch_size: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Keys and values (N, H, T, d) of all active adapters, or None if there are none."""
        names = self._names()
        if self.disable_adapters or not names:
            return None
        hidden = None
        if any(name in self.bhpeft_gate_prefix for name in names):
            hidden = self.input.take(weight_of(self.bhpeft_prefix[names[0]]).device)
        pairs = torch.cat([self._pair(name, batch_size, hidden) for name in names], dim=3)
        return pairs[:, 0], pairs[:, 1]

    def _names(self) -> list[str]:
        return [name for name in self.active_adapters if name in self.bhpeft_prefix]

    def _pair(self, name: str, batch_size: int, hidden: torch.Tensor | None) -> torch.Tensor:
        pair: torch.Tensor = self.bhpeft_prefix_dropout[name](self.bhpeft_prefix[name](batch_size))
        if hidden is not None and name in self.bhpeft_gate_prefix:
            gate = run_gate(self.bhpeft_gate_prefix[name], hidden, self.gate_mask)
            pair = pair * gate[..., None, None]
        return pair

    # A tuner layer without a base layer has no weight of its own; peft's default would recurse.
    @property
    def weight(self) -> torch.Tensor:
        """Not there: the keys and values are in `bhpeft_prefix`."""
        raise AttributeError("weight")

    @property
    def bias(self) -> torch.Tensor:
        """Not there."""
        raise AttributeError("bias")

    def merge(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to merge here: `HybridModel` refuses before it comes to this."""
