"""Adapters that are in the model but out of sight: frozen, merged into the base, or disabled.

The commonest case is quiet: LoRA injected first, then a prefix `PeftModel` around it. peft freezes
the LoRA, and `save_pretrained` drops it; its uncertainty would silently be left out.
"""

from __future__ import annotations

from peft.tuners.ia3 import IA3Layer
from peft.tuners.ln_tuning.layer import LNTuningLayer
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.tuners.vera import VeraLayer
from torch import nn

from posthoc_bhpeft.blocks.adapters import active_tensors, tuner_family
from posthoc_bhpeft.blocks.replayed import REPLAYED
from posthoc_bhpeft.errors import HiddenAdapterError
from posthoc_bhpeft.hybrid.layer import HybridLayer

WITH_BLOCKS = (
    LoraLayer,
    IA3Layer,
    VeraLayer,
    LNTuningLayer,
    HybridLayer,
    *REPLAYED,
)
"""Layers that have blocks. To freeze any other is the way out that `discover` names."""


def check_adapters_visible(model: nn.Module) -> None:
    """Raise if an active adapter is merged, disabled, or wholly frozen.

    Raises:
        HiddenAdapterError: Naming the first layer concerned and the way out.
    """
    layers = check_adapters_apart(model)
    check_not_frozen(layers)


def check_adapters_apart(model: nn.Module) -> dict[str, BaseTunerLayer]:
    """Raise if an active adapter is merged or disabled.

    Returns:
        All layers with adapters, by their path.

    Raises:
        HiddenAdapterError: Naming the first layer concerned and the way out.
    """
    layers = {
        path: module for path, module in model.named_modules() if isinstance(module, BaseTunerLayer)
    }
    for path, layer in layers.items():
        if layer.merged:
            raise HiddenAdapterError(
                f"The adapter at {path!r} is merged into the base weights, so it has no weights of "
                "its own. Call unmerge_adapter() first, or merge a copy.deepcopy of the model."
            )
        if layer.disable_adapters:
            raise HiddenAdapterError(
                f"The adapter at {path!r} is disabled. Call enable_adapter_layers(), or leave the "
                "disable_adapter() context, first."
            )
    return layers


def check_not_frozen(layers: dict[str, BaseTunerLayer]) -> None:
    """Raise if no tensor of any active adapter of one tuner type requires a gradient."""
    by_type: dict[type, list[str]] = {}
    trainable: set[type] = set()
    for path, layer in layers.items():
        tensors = active_tensors(layer)
        family = tuner_family(layer)
        if tensors and isinstance(layer, WITH_BLOCKS):
            by_type.setdefault(family, []).append(path)
        if any(tensor.requires_grad for tensor in tensors):
            trainable.add(family)
    for family, paths in by_type.items():
        if family not in trainable:
            raise HiddenAdapterError(
                f"The active {family.__name__} adapter is frozen in all of its {len(paths)} layers "
                f"(first: {paths[0]!r}), so its uncertainty would be left out. A checkpoint is "
                "loaded frozen unless is_trainable=True is given; and peft freezes a LoRA when a "
                "prefix PeftModel is put around it, and drops it on saving. Train both with "
                "HybridConfig, put two checkpoints into one hybrid (docs/importing.md), or call "
                "requires_grad_(True) on its tensors."
            )
