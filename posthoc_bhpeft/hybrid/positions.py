"""Where the text starts: at position 0, or after the prefix as with peft's own PrefixTuning."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.func import functional_call

from posthoc_bhpeft.hybrid.config import HybridConfig
from posthoc_bhpeft.hybrid.layer import HybridLayer

#: What transformers calls a table of positions, and the module that makes rotary angles.
_TABLES = ("position_embeddings", "wpe", "embed_positions")
_ROTARY = ("rotary_emb",)


class HybridPositions(nn.Module, HybridLayer):
    """Adds the length of the active prefixes to every position; it has no weights of its own.

    Args:
        base_layer: A table of positions, or the module that makes rotary angles.
        adapter_name: The first adapter.
        config: Its number of virtual tokens.
    """

    adapter_layer_names = ()
    other_param_names = ("shifts",)

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: HybridConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.shifts: dict[str, int] = {}
        self._start(adapter_name)
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: HybridConfig) -> None:
        """Add the shift of one more adapter."""
        self.shifts[adapter_name] = config.num_virtual_tokens
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the base layer gives for positions that come after the prefix."""
        shift = sum(self.shifts.get(name, 0) for name in self.active_adapters)
        if self.disable_adapters or not shift:
            return self.base_layer(*args, **kwargs)
        if isinstance(self.base_layer, nn.Embedding):
            # A table without its first rows: OPT's counts positions itself, out of our reach.
            later = self.base_layer.weight[shift:]
            return functional_call(self.base_layer, {"weight": later}, args, kwargs)
        if "position_ids" in kwargs:
            kwargs["position_ids"] = kwargs["position_ids"] + shift
        else:
            args = (args[0], args[1] + shift, *args[2:])
        return self.base_layer(*args, **kwargs)

    def merge(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to merge here: `HybridModel` refuses before it comes to this."""


def reads_positions(name: str, module: nn.Module) -> bool:
    """Whether a module turns positions into numbers, by its name and kind."""
    base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    last = name.rpartition(".")[2]
    return last in _ROTARY or (last in _TABLES and isinstance(base, nn.Embedding))


def position_modules(modules: Iterable[tuple[str, nn.Module]]) -> list[str]:
    """Names of the modules to shift."""
    return [name for name, module in modules if reads_positions(name, module)]
