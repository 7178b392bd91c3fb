"""A linear module with LoRA, a bottleneck adapter, or both."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from posthoc_bhpeft.errors import NotMergeableError
from posthoc_bhpeft.hybrid.bottleneck import BottleneckLayer, weight_of
from posthoc_bhpeft.hybrid.config import HybridConfig
from posthoc_bhpeft.hybrid.gates import run_gate
from posthoc_bhpeft.hybrid.layer import dropout, linear_sizes, new_lora
from posthoc_bhpeft.hybrid.plan import Role
from posthoc_bhpeft.hybrid.relay import Relay


class HybridLinear(BottleneckLayer):
    """`y = W x + s_l B A x`, then `y + s_a up(act(down(h)))`.

    `h` is y (sequential) or the feed-forward's input (parallel).

    With gates, both terms are multiplied by their gate. Either term may be absent, for each adapter
    name apart. Several active adapters add up; sequential bottlenecks run one after the other.

    Args:
        base_layer: The `nn.Linear` or `Conv1D` it takes the place of; x is (..., q), y is (..., p).
        adapter_name: The first adapter.
        config: Its sizes.
        role: Which parts this module carries.
    """

    adapter_layer_names = (
        "bhpeft_lora_A",
        "bhpeft_lora_B",
        "bhpeft_gate_lora",
        *BottleneckLayer.bottleneck_layer_names,
    )
    other_param_names = (
        "bhpeft_lora_dropout",
        "lora_scaling",
        "relays_out",
        "relays_in",
        *BottleneckLayer.bottleneck_param_names,
    )

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, config: HybridConfig, role: Role
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.bhpeft_lora_A = nn.ModuleDict()
        self.bhpeft_lora_B = nn.ModuleDict()
        self.bhpeft_gate_lora = nn.ModuleDict()
        self.bhpeft_lora_dropout = nn.ModuleDict()
        self.lora_scaling: dict[str, float] = {}
        self.relays_out: dict[str, Relay] = {}
        self.relays_in: dict[str, Relay] = {}
        self._start(adapter_name)
        self.update_layer(adapter_name, config, role)

    def update_layer(self, adapter_name: str, config: HybridConfig, role: Role) -> None:
        """Add the parts of one more adapter."""
        inputs, outputs = linear_sizes(self.get_base_layer())
        if role.lora:
            self._add_lora(adapter_name, config, inputs, outputs)
        if role.adapter:
            self._add_bottleneck(adapter_name, config, outputs)
        if role.relay_in is not None:
            self.relays_in[adapter_name] = role.relay_in
        if role.relay_out is not None:
            self.relays_out[adapter_name] = role.relay_out
        self.gate_mask = role.gate_mask or self.gate_mask
        self._finish_update(adapter_name, config)

    def _add_lora(self, name: str, config: HybridConfig, inputs: int, outputs: int) -> None:
        self.bhpeft_lora_A[name], self.bhpeft_lora_B[name] = new_lora(inputs, outputs, config.r)
        self.bhpeft_lora_dropout[name] = dropout(config.lora_dropout)
        self.lora_scaling[name] = config.lora_scaling
        if config.gates:
            self.bhpeft_gate_lora[name] = nn.Linear(inputs, 1)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The base module's output with the active parts added, in the base module's dtype."""
        if self.disable_adapters:
            if self.merged:
                self.unmerge()
            return self._base(x, *args, **kwargs)
        for name in self.active_adapters:
            if name in self.relays_out:
                self.relays_out[name].put(x)
        y = self._base(x, *args, **kwargs)
        if self.merged:
            return y
        for name in self.active_adapters:
            if name in self.bhpeft_lora_A:
                y = y + self._lora(name, x).to(y.dtype)
        for name in self.active_adapters:
            if name in self.bhpeft_adapter_down:
                y = y + self._adapter(name, y).to(y.dtype)
        return y

    def _base(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        y: torch.Tensor = self.base_layer(x, *args, **kwargs)
        return y

    def _lora(self, name: str, x: torch.Tensor) -> torch.Tensor:
        first, second = self.bhpeft_lora_A[name], self.bhpeft_lora_B[name]
        x = self._cast_input_dtype(x, weight_of(first).dtype)
        delta: torch.Tensor = second(first(self.bhpeft_lora_dropout[name](x)))
        delta = delta * self.lora_scaling[name]
        if name in self.bhpeft_gate_lora:
            delta = delta * run_gate(self.bhpeft_gate_lora[name], x, self.gate_mask)
        return delta

    def _adapter(self, name: str, y: torch.Tensor) -> torch.Tensor:
        hidden = self.relays_in[name].take(y.device) if name in self.relays_in else y
        return self._bottleneck(name, hidden)

    @property
    def mergeable(self) -> bool:
        """Whether LoRA without gates is all this module carries."""
        return not (self.bhpeft_adapter_down or self.bhpeft_gate_lora or self.bhpeft_gate_adapter)

    def lora_delta(self, name: str) -> torch.Tensor:
        """`s B A` in the layout of the base module's weight."""
        first, second = weight_of(self.bhpeft_lora_A[name]), weight_of(self.bhpeft_lora_B[name])
        delta = (second @ first) * self.lora_scaling[name]
        return delta.T if isinstance(self.get_base_layer(), Conv1D) else delta

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add LoRA's `s B A` to the base weight.

        Raises:
            NotMergeableError: If there is more than LoRA, or the merged weight is not finite.
        """
        if not self.mergeable:
            raise NotMergeableError("Only LoRA without gates can be merged into a weight.")
        for name in adapter_names or self.active_adapters:
            if name in self.bhpeft_lora_A and name not in self.merged_adapters:
                self._add_to_base(self.lora_delta(name), safe_merge)
                self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Take merged LoRA out of the base weight again."""
        while self.merged_adapters:
            self._add_to_base(-self.lora_delta(self.merged_adapters.pop()), False)

    def _add_to_base(self, delta: torch.Tensor, check: bool) -> None:
        weight = weight_of(self.get_base_layer())
        merged = weight.data + delta.detach().to(weight.dtype)
        if check and not merged.isfinite().all():
            raise NotMergeableError("The merged weight has NaN or infinity; check the adapter.")
        weight.data = merged
