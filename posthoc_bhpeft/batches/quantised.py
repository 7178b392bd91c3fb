"""Layers in 4 bits on a processor, kept in the form that gradients go through."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

LAYS_OUT = "support_avx512bf16_for_cpu"
"""Of layers of bitsandbytes: whether they lay their weights out anew to predict."""


@contextmanager
def differentiable(model: nn.Module) -> Iterator[None]:
    """Gradients pass through every frozen layer, also through those of bitsandbytes.

    On processors with AVX512-BF16 bitsandbytes 0.50 lays a 4-bit layer out anew at its first call
    in evaluation mode, for a product in bfloat16 that autograd does not know: from then on, in
    training too, what the layer is given has no gradient, and nothing says so. Here layers that
    were laid out so are taken back, and none is until the context is left.
    """
    layers = [module for module in model.modules() if getattr(module, LAYS_OUT, False)]
    for layer in layers:
        setattr(layer, LAYS_OUT, False)
        take_back(layer)
    try:
        yield
    finally:
        for layer in layers:
            setattr(layer, LAYS_OUT, True)


def take_back(layer: nn.Module) -> None:
    """Undo the layout of one layer; its scales stay rounded to bfloat16."""
    state: Any = getattr(layer.get_parameter("weight"), "quant_state", None)
    if not getattr(state, "packing_format_for_cpu", False):
        return
    # Asking for what would be saved is the public way back: files hold the other form.
    layer.state_dict()
    # Scales that are not quantised themselves, one of 64 weights, are left there as (q / 64, p).
    if state.absmax.dim() == 2:
        state.absmax = state.absmax.T.reshape(-1).to(torch.float32)


def scales(model: nn.Module) -> Iterator[torch.Tensor]:
    """The scales of quantised weights, which bitsandbytes keeps beside parameters and buffers."""
    for module in model.modules():
        weight = module._parameters.get("weight")
        four: Any = getattr(weight, "quant_state", None)
        if four is not None:
            yield four.absmax
            if four.nested:
                yield four.state2.absmax
        # Of 8 bits, on the weight until the first call, then on the module.
        for holder in (weight, getattr(module, "state", None)):
            eight = getattr(holder, "SCB", None)
            if isinstance(eight, torch.Tensor):
                yield eight
