"""Blocks of LoRA on a parameter (`LoraConfig(target_parameters=...)`).

peft adds `s B A` to the parameter itself and runs the layer, so the modules of `A` and `B` are
never called. On the weight of a linear layer, with input `x` and `g` the gradient at its output,

    A:  G_n = s sum_t (B^T g_nt) x_nt^T        B:  G_n = s sum_t g_nt (A x_nt)^T
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, cast

from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor, nn

from posthoc_bhpeft.blocks.block import (
    Block,
    MatrixView,
    ModuleTap,
    Observation,
    block_at,
    by_row,
)
from posthoc_bhpeft.errors import UnclaimedParameterError

Part = Literal["lora_A", "lora_B"]
PARTS: tuple[Part, ...] = ("lora_A", "lora_B")


def target_parameter_blocks(path: str, module: nn.Module) -> Iterator[Block]:
    """`A` `(r, q)` and `B` `(p, r)` of every active adapter on a linear layer's weight.

    Raises:
        UnclaimedParameterError: If the parameter is no such weight, as those of experts are.
    """
    if not isinstance(module, ParamWrapper):
        return
    for adapter in module.active_adapters:
        for part in PARTS:
            container = getattr(module, part)
            weight = container[adapter].weight if adapter in container else None
            if weight is None or not weight.requires_grad:
                continue
            check_linear(path, module)
            view = MatrixView((weight.shape[0], weight.shape[1]))
            yield block_at(path, f"{part}.{adapter}.weight", view, TargetedFactor(part, adapter))


def check_linear(path: str, module: ParamWrapper) -> None:
    """Raise unless the parameter is the weight of a linear layer."""
    base = module.get_base_layer()
    if isinstance(base, nn.Linear) and module.parameter_name == "weight":
        return
    raise UnclaimedParameterError(
        f"The LoRA at {path!r} is on the parameter {module.parameter_name!r} of "
        f"{type(base).__name__} (target_parameters), and only weights of nn.Linear are supported: "
        "a layer of experts does not say which rows went where. Freeze it with "
        f"model.get_submodule({path!r}).requires_grad_(False), or train with target_modules."
    )


@dataclass(frozen=True)
class TargetedFactor(ModuleTap):
    """`G_n` of one factor."""

    part: Part
    adapter: str

    def observe(
        self, module: nn.Module, module_input: Tensor, cotangent: Tensor, n_rows: int
    ) -> Observation:
        layer = cast(ParamWrapper, module)
        down, up = (factor(layer, part, self.adapter).to(cotangent) for part in PARTS)
        above = by_row(cotangent, n_rows) * layer.scaling[self.adapter]
        given = by_row(module_input, n_rows)
        if self.part == "lora_B":
            return Observation(above, given @ down.T)
        return Observation(above @ up, given)


def factor(layer: ParamWrapper, part: Part, adapter: str) -> Tensor:
    """`A` or `B`."""
    found: Tensor = getattr(layer, part)[adapter].weight
    return found
