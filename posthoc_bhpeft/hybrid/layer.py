"""What every module of the tuner shares, and the small pieces they are built from."""

from __future__ import annotations

import math

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from posthoc_bhpeft.hybrid.config import HybridConfig


class HybridLayer(BaseTunerLayer):
    """Base class of the modules this tuner puts into a model; peft finds them by it."""

    def _start(self, adapter_name: str) -> None:
        # peft reads these three on every tuner layer; its own defaults are shared by all of them.
        self._disable_adapters = False
        self._active_adapter = adapter_name
        self.merged_adapters: list[str] = []

    def _finish_update(self, adapter_name: str, config: HybridConfig) -> None:
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)


def dropout(probability: float) -> nn.Module:
    """Dropout, or the identity where it would do nothing."""
    return nn.Dropout(probability) if probability > 0 else nn.Identity()


def linear_sizes(module: nn.Module) -> tuple[int, int]:
    """(inputs, outputs) of an `nn.Linear` or a `Conv1D`, which stores its weight transposed."""
    if isinstance(module, Conv1D):
        inputs, outputs = module.weight.shape
        return inputs, outputs
    assert isinstance(module, nn.Linear)
    return module.in_features, module.out_features


def new_lora(inputs: int, outputs: int, rank: int) -> tuple[nn.Linear, nn.Linear]:
    """A and B of LoRA; B is zero, so the model starts unchanged."""
    first, second = nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs, bias=False)
    nn.init.kaiming_uniform_(first.weight, a=math.sqrt(5))
    nn.init.zeros_(second.weight)
    return first, second
