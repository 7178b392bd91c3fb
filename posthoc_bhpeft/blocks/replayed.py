"""Blocks of peft layers without a formula of their own here, by running a layer once more a row.

With `f(x; theta)` the layer, `x_n` what row `n` gave it and `g_n` the gradient at what came out,

    G_n = d/dtheta <f(x_n; theta), g_n>

by autograd through this one layer. It is as exact as a formula, and costs a pass through the layer
for each row, so it is for methods with few weights. `KFAC`, which needs the two sides of a
gradient, has no meaning here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from peft.tuners.fourierft.layer import FourierFTLayer
from peft.tuners.hra.layer import HRALayer
from peft.tuners.loha.layer import LoHaLayer
from peft.tuners.lokr.layer import LoKrLayer
from peft.tuners.oft.layer import OFTLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from posthoc_bhpeft.blocks.adapters import active_tensors
from posthoc_bhpeft.blocks.block import (
    Block,
    MatrixView,
    ModuleTap,
    Observation,
    block_at,
    by_row,
)

REPLAYED = (LoHaLayer, LoKrLayer, OFTLayer, HRALayer, FourierFTLayer)
"""Layers of one tensor in and one out that treat rows apart; each is in the support table."""


def replayed_blocks(path: str, module: nn.Module) -> Iterator[Block]:
    """Every trainable tensor of the active adapters, its first axis in rows."""
    if not isinstance(module, REPLAYED) or not isinstance(module, BaseTunerLayer):
        return
    if isinstance(module.get_base_layer(), nn.Linear):
        active = {id(tensor) for tensor in active_tensors(module)}
        for inside, tensor in module.named_parameters():
            if id(tensor) in active and tensor.requires_grad:
                rows = tensor.shape[0] if tensor.dim() > 1 else tensor.numel()
                view = MatrixView((rows, tensor.numel() // rows))
                yield block_at(path, inside, view, Replayed(inside, view))


@dataclass(frozen=True)
class Replayed(ModuleTap):
    """`G_n` of one tensor of a layer.

    Attributes:
        inside: Its name in the layer.
        view: The matrix inside it.
    """

    inside: str
    view: MatrixView

    def observe(
        self, module: nn.Module, module_input: Tensor, cotangent: Tensor, n_rows: int
    ) -> Observation:
        tensor, base = module.get_parameter(self.inside), module.get_parameter("base_layer.weight")
        given = by_row(module_input, n_rows).to(base.dtype)
        above = by_row(cotangent, n_rows)
        gradients = []
        for row in range(n_rows):
            with torch.enable_grad():
                output = module.forward(given[row : row + 1])
            (found,) = torch.autograd.grad(output, tensor, above[row : row + 1].to(output))
            gradients.append(self.view.read(found))
        return Observation.of_gradient(torch.stack(gradients).to(cotangent))
