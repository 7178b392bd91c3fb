"""Which parameters belong to which adapter of peft, and which adapters are active."""

from __future__ import annotations

from collections.abc import Iterator

from peft import PeftModel
from peft.tuners.adalora import AdaLoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn


def active_tensors(layer: BaseTunerLayer) -> list[nn.Parameter]:
    """Parameters of a tuner layer that belong to its active adapters."""
    active = set(layer.active_adapters)
    return [tensor for adapter, tensor in adapter_tensors(layer) if adapter in active]


def adapter_tensors(
    layer: BaseTunerLayer | AuxiliaryTrainingWrapper,
) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters of a layer with the adapter that each belongs to."""
    for name in layer.adapter_layer_names:
        container = getattr(layer, name, None)
        if isinstance(container, (nn.ModuleDict, nn.ParameterDict)):
            for adapter, item in container.items():
                for tensor in [item] if isinstance(item, nn.Parameter) else item.parameters():
                    yield adapter, tensor


def inactive_tensors(model: nn.Module) -> set[int]:
    """Identities of parameters of adapters that are loaded but not active, heads included.

    peft may leave them trainable; they take no part in what the model computes. Nor is AdaLoRA's
    count of ranks a weight, though in memory it requires a gradient; no checkpoint holds it.
    """
    found: set[int] = set()
    for module in model.modules():
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
            active = set(module.active_adapters)
            found |= {id(t) for adapter, t in adapter_tensors(module) if adapter not in active}
        if isinstance(module, AdaLoraLayer):
            found |= {id(count) for count in module.ranknum.values()}
        if isinstance(module, PeftModel):
            for adapter, encoder in getattr(module, "prompt_encoder", nn.ModuleDict()).items():
                if adapter != module.active_adapter:
                    found |= {id(tensor) for tensor in encoder.parameters()}
    return found


def tuner_family(layer: BaseTunerLayer) -> type:
    """The class that all layers of one tuner share: `LoraLayer` for every kind of LoRA layer."""
    order = type(layer).__mro__
    return order[order.index(BaseTunerLayer) - 1] if BaseTunerLayer in order else type(layer)
