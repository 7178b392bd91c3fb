r"""`Product`: the update `M = B A` of a LoRA layer as one matrix, observed beside its factors.

The layer computes `B (A x)` at every position, so the gradient at `M` is

    G_n = sum_t g_nt x_nt^T,    g the cotangent at B's output, x the input of A:

the `rows` of B's observation and the `columns` of A's. Whatever stands behind `B` (a scaling, a
gate) is in `g`. No further pass is needed, and nothing is made that the two do not hold already.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from posthoc_bhpeft.blocks.block import Block, Observation, Observed
from posthoc_bhpeft.blocks.tape import See
from posthoc_bhpeft.errors import ConfigError

FACTORS = {"lora_A": "lora_B", "bhpeft_lora_A": "bhpeft_lora_B"}
"""The module of the other factor, by the module of `A`: peft's and ours."""


@dataclass(frozen=True)
class Product:
    """`M = B A` of one LoRA layer.

    Attributes:
        name: Unique: B's name, with both factors in place of one.
        down: `A`, `(r, q)`.
        up: `B`, `(p, r)`.
    """

    name: str
    down: Block
    up: Block

    @property
    def shape(self) -> tuple[int, int]:
        """`(p, q)`."""
        return self.up.shape[0], self.down.shape[1]

    @property
    def size(self) -> int:
        """`p q`; the weights it is made of are fewer."""
        return self.shape[0] * self.shape[1]

    @property
    def factors(self) -> tuple[Block, Block]:
        """`A` and `B`."""
        return self.down, self.up

    def matrix(self, weights: Mapping[str, Tensor]) -> Tensor:
        """`B A` from weights by block name."""
        return weights[self.up.name] @ weights[self.down.name]

    def change(
        self, weights: Mapping[str, Tensor], moved: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """`U` `(p, 2 r)` and `V` `(2 r, q)` with `U V = M - M0`.

        `B A - B0 A0 = dB A + B0 dA`, so every part is as small as a movement is; a difference of
        two products would cancel in single precision.

        Args:
            weights: `A` and `B` by block name.
            moved: `dA = A - A0` and `dB = B - B0` by block name.
        """
        up, down = weights[self.up.name], weights[self.down.name]
        up_moved, down_moved = moved[self.up.name], moved[self.down.name]
        return torch.cat([up_moved, up - up_moved], 1), torch.cat([down, down_moved], 0)


def find_products(blocks: Sequence[Block]) -> tuple[Product, ...]:
    """The LoRA layers among blocks, told by the paths of their parameters.

    What has no other factor is left out: it stays a block like any other. So are those of AdaLoRA,
    whose update has a third.
    """
    by_parameter = {block.parameter: block for block in blocks}
    found = []
    for block in blocks:
        parts = block.parameter.split(".")
        place = next((index for index, part in enumerate(parts) if part in FACTORS), None)
        if place is None:
            continue
        second = FACTORS[parts[place]]
        if ".".join([*parts[:place], "lora_E", *parts[place + 1 :]]) in by_parameter:
            continue
        other = by_parameter.get(".".join([*parts[:place], second, *parts[place + 1 :]]))
        if other is not None and other.shape[1] == block.shape[0]:
            both = ".".join([*parts[:place], f"{second}A", *parts[place + 1 :]])
            found.append(Product(both, block, other))
    return tuple(found)


def with_products(see: Callable[[Observed, Observation], None], products: Sequence[Product]) -> See:
    """What to do with observed blocks, so that products are seen too, each after its second factor.

    Args:
        see: What to do with the observation of a block or a product.
        products: Of the blocks that are observed.

    Raises:
        ConfigError: When called, if the engine gives gradients without their two sides.
    """
    product_of = {block.name: product for product in products for block in product.factors}
    waiting: dict[str, Observation] = {}

    def see_both(block: Block, observation: Observation) -> None:
        see(block, observation)
        product = product_of.get(block.name)
        if product is None:
            return
        check_factored(observation)
        waiting[block.name] = observation
        if all(factor.name in waiting for factor in product.factors):
            down, up = (waiting.pop(factor.name) for factor in product.factors)
            see(product, Observation(up.rows, down.columns))

    return see_both


def check_factored(observation: Observation) -> None:
    """Raise unless the two sides of a gradient are known."""
    if not observation.factored:
        raise ConfigError(
            "Products of LoRA layers need the inputs and the output gradients of each layer, "
            "and this engine gives their product only. Use the default engine, observing, or "
            "leave products=True out."
        )
