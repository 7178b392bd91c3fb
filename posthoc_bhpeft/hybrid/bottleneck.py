"""The bottleneck adapter itself, wherever it is placed."""

from __future__ import annotations

import math

import torch
from torch import nn
from transformers.activations import ACT2FN

from posthoc_bhpeft.hybrid.config import HybridConfig
from posthoc_bhpeft.hybrid.gates import GateMask, run_gate
from posthoc_bhpeft.hybrid.layer import HybridLayer, dropout


class BottleneckLayer(nn.Module, HybridLayer):
    """Abstract: a layer whose adapters may have a bottleneck, `s up(dropout(act(down(h))))`."""

    bottleneck_layer_names = ("bhpeft_adapter_down", "bhpeft_adapter_up", "bhpeft_gate_adapter")
    bottleneck_param_names = ("bhpeft_adapter_dropout", "bhpeft_activation", "adapter_scaling")

    def __init__(self) -> None:
        super().__init__()
        self.bhpeft_adapter_down = nn.ModuleDict()
        self.bhpeft_adapter_up = nn.ModuleDict()
        self.bhpeft_gate_adapter = nn.ModuleDict()
        self.bhpeft_adapter_dropout = nn.ModuleDict()
        self.bhpeft_activation = nn.ModuleDict()
        self.adapter_scaling: dict[str, float] = {}
        self.gate_mask: GateMask | None = None

    def _add_bottleneck(self, name: str, config: HybridConfig, width: int) -> None:
        down, up = new_bottleneck(width, config.bottleneck_size)
        self.bhpeft_adapter_down[name], self.bhpeft_adapter_up[name] = down, up
        self.bhpeft_adapter_dropout[name] = dropout(config.adapter_dropout)
        self.bhpeft_activation[name] = ACT2FN[config.adapter_activation]
        self.adapter_scaling[name] = config.adapter_scaling
        if config.gates:
            self.bhpeft_gate_adapter[name] = nn.Linear(width, 1)

    def _bottleneck(self, name: str, hidden: torch.Tensor) -> torch.Tensor:
        """The adapter's term for input `hidden` (..., d), in the adapter's own dtype."""
        down, up = self.bhpeft_adapter_down[name], self.bhpeft_adapter_up[name]
        narrow = self.bhpeft_activation[name](down(hidden.to(weight_of(down).dtype)))
        delta: torch.Tensor = up(self.bhpeft_adapter_dropout[name](narrow))
        delta = delta * self.adapter_scaling[name]
        if name in self.bhpeft_gate_adapter:
            delta = delta * run_gate(self.bhpeft_gate_adapter[name], hidden, self.gate_mask)
        return delta


def new_bottleneck(width: int, size: int) -> tuple[nn.Linear, nn.Linear]:
    """Down and up of an adapter; up is zero, so the model starts unchanged."""
    down, up = nn.Linear(width, size), nn.Linear(size, width)
    nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
    for parameter in (down.bias, up.weight, up.bias):
        nn.init.zeros_(parameter)
    return down, up


def weight_of(module: nn.Module) -> torch.Tensor:
    """The weight of a linear module taken from a ModuleDict, which does not know its type."""
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return weight
