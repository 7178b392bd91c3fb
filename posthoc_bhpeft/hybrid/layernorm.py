"""A LayerNorm with a bottleneck adapter before it, for blocks that normalise last."""

from __future__ import annotations

import torch
from torch import nn

from posthoc_bhpeft.hybrid.config import HybridConfig
from posthoc_bhpeft.hybrid.gates import GateMask, run_gate
from posthoc_bhpeft.hybrid.layer import (
    HybridLayer,
    activation,
    dropout,
    new_bottleneck,
    run_bottleneck,
)
from posthoc_bhpeft.hybrid.plan import Role


class HybridLayerNorm(nn.Module, HybridLayer):
    """`LN(z + s up(act(down(LN(z)))))`, AdapterHub's seq_bn (https://arxiv.org/abs/2005.00247).

    `z` (N, T, d) is the feed-forward's output plus its residual.

    Args:
        base_layer: The LayerNorm at the end of the block.
        adapter_name: The first adapter.
        config: Its sizes.
        role: Where it finds the mask for its gate.
    """

    adapter_layer_names = ("bhpeft_adapter_down", "bhpeft_adapter_up", "bhpeft_gate_adapter")
    other_param_names = ("bhpeft_adapter_dropout", "bhpeft_activation", "adapter_scaling")

    def __init__(
        self,
        base_layer: nn.LayerNorm,
        adapter_name: str,
        config: HybridConfig,
        role: Role,
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self._start(adapter_name)
        for name in self.adapter_layer_names + self.other_param_names:
            setattr(self, name, nn.ModuleDict() if name.startswith("bhpeft_") else {})
        self.gate_mask: GateMask | None = None
        self.update_layer(adapter_name, config, role)

    def update_layer(self, adapter_name: str, config: HybridConfig, role: Role) -> None:
        """Add the bottleneck of one more adapter."""
        width = self.get_base_layer().normalized_shape[-1]
        down, up = new_bottleneck(width, config.bottleneck_size)
        self.bhpeft_adapter_down[adapter_name], self.bhpeft_adapter_up[adapter_name] = down, up
        self.bhpeft_adapter_dropout[adapter_name] = dropout(config.adapter_dropout)
        self.bhpeft_activation[adapter_name] = activation(config.adapter_activation)
        self.adapter_scaling[adapter_name] = config.adapter_scaling
        if config.gates:
            self.bhpeft_gate_adapter[adapter_name] = nn.Linear(width, 1)
        self.gate_mask = role.gate_mask or self.gate_mask
        self._finish_update(adapter_name, config)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """The normalised sum with the active adapters inside, in the base module's dtype."""
        if not self.disable_adapters:
            for name in self.active_adapters:
                if name in self.bhpeft_adapter_down:
                    z = z + self._adapter(name, self.base_layer(z)).to(z.dtype)
        output: torch.Tensor = self.base_layer(z)
        return output

    def _adapter(self, name: str, hidden: torch.Tensor) -> torch.Tensor:
        delta = self.adapter_scaling[name] * run_bottleneck(
            self.bhpeft_adapter_down[name],
            self.bhpeft_activation[name],
            self.bhpeft_adapter_dropout[name],
            self.bhpeft_adapter_up[name],
            hidden,
        )
        if name in self.bhpeft_gate_adapter:
            gate = self.bhpeft_gate_adapter[name]
            delta = delta * run_gate(gate, hidden, self.gate_mask)
        return delta
