"""`GaussianPrior`: isotropic in each block, with a mean of zero or any weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from posthoc_bhpeft.blocks import Block
from posthoc_bhpeft.errors import ConfigError


@dataclass(frozen=True)
class GaussianPrior:
    """`N(mu0, I / d)` in each block, with its own precision `d`.

    Attributes:
        precision: `d` by block name, in inverse squared units of the weights; above 0.
        mean: `mu0` `(p, q)` by block name; blocks left out have mean zero.
    """

    precision: Mapping[str, float]
    mean: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for name, value in self.precision.items():
            if not value > 0:
                raise ConfigError(
                    f"The prior precision of block {name!r} is {value!r}; it must be above 0."
                )

    @classmethod
    def isotropic(cls, blocks: Sequence[Block], precision: float) -> GaussianPrior:
        """One precision for all blocks, mean zero."""
        return cls({block.name: precision for block in blocks})

    def mean_of(self, block: Block) -> Tensor | None:
        """The mean of a block, or `None` for zero."""
        return self.mean.get(block.name)
