"""A LayerNorm with a bottleneck adapter before it, for blocks that normalise last."""

from __future__ import annotations

import torch
from torch import nn

from posthoc_bhpeft.hybrid.bottleneck import BottleneckLayer
from posthoc_bhpeft.hybrid.config import HybridConfig
from posthoc_bhpeft.hybrid.plan import Role


class HybridLayerNorm(BottleneckLayer):
    """`LN(z + s up(act(down(LN(z)))))`, AdapterHub's seq_bn (https://arxiv.org/abs/2005.00247).

    `z` (N, T, d) is the feed-forward's output plus its residual.

    Args:
        base_layer: The LayerNorm at the end of the block.
        adapter_name: The first adapter.
        config: Its sizes.
        role: Where it finds the mask for its gate.
    """

    adapter_layer_names = BottleneckLayer.bottleneck_layer_names
    other_param_names = BottleneckLayer.bottleneck_param_names

    def __init__(
        self, base_layer: nn.LayerNorm, adapter_name: str, config: HybridConfig, role: Role
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self._start(adapter_name)
        self.update_layer(adapter_name, config, role)

    def update_layer(self, adapter_name: str, config: HybridConfig, role: Role) -> None:
        """Add the bottleneck of one more adapter."""
        self._add_bottleneck(adapter_name, config, self.base_layer.normalized_shape[-1])
        self.gate_mask = role.gate_mask or self.gate_mask
        self._finish_update(adapter_name, config)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """The normalised sum with the active adapters inside, in the base module's dtype."""
        if not self.disable_adapters:
            for name in self.active_adapters:
                if name in self.bhpeft_adapter_down:
                    z = z + self._bottleneck(name, self.base_layer(z)).to(z.dtype)
        output: torch.Tensor = self.base_layer(z)
        return output
