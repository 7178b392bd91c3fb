"""Are rows apart? One look at the gradients of one row's outputs.

Gradients a row would be wrong and their sum right where rows are mixed, by statistics over the
batch or by a module that is called once for all of it. Nothing else would tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from posthoc_bhpeft.blocks.block import Block, Observation
from posthoc_bhpeft.blocks.tape import See, Tape
from posthoc_bhpeft.errors import ModelError

_APART: WeakKeyDictionary[nn.Module, set[frozenset[str]]] = WeakKeyDictionary()
"""Models, as long as they live, and names of their blocks for which rows were seen apart."""


@dataclass
class CheckedTape:
    """A tape that looks once at each model: at its first batch of several rows.

    A row alone cannot mix. So a fit looks, unless all its batches are single rows; and what comes
    after it looks where that fit, or the process that loaded the posterior, could not.

    Attributes:
        tape: What is looked at.
        model: Of the tape.
        blocks: Of the tape.
        again: Look though it was done before.
    """

    tape: Tape
    model: nn.Module
    blocks: Sequence[Block]
    again: bool = False
    names: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        self.names = frozenset(block.name for block in self.blocks)

    def observe(
        self, outputs: Tensor, direction: Tensor, see: See, *, retain: bool = False
    ) -> None:
        """See `Tape.observe`.

        Raises:
            ModelError: If rows are mixed.
        """
        self.look(outputs)
        self.tape.observe(outputs, direction, see, retain=retain)

    def look(self, outputs: Tensor) -> None:
        """One more backward pass, unless it is known what it would find.

        Raises:
            ModelError: If rows are mixed.
        """
        known = _APART.setdefault(self.model, set())
        if len(outputs) > 1 and (self.again or self.names not in known):
            check_rows_apart(self.tape, outputs)
            known.add(self.names)
            self.again = False


def check_rows_apart(tape: Tape, outputs: Tensor) -> None:
    """Raise if outputs of the last row depend on what a block computed for another row.

    Raises:
        ModelError: Naming the block.
    """
    direction = torch.zeros_like(outputs)
    direction[-1, ..., 0] = 1

    def check(block: Block, seen: Observation) -> None:
        size = seen.gradient().abs().amax((1, 2))
        if bool((size[:-1] > 1e-4 * size.max()).any()):
            raise ModelError(
                f"Block {block.name!r}: outputs of one row depend on what it computes for other "
                "rows of the batch, so there is no gradient a row: its module mixes rows, or is "
                "called once for the whole batch. Leave it out: freeze its tensors with "
                "requires_grad_(False), or train without it."
            )

    tape.observe(outputs, direction, check, retain=True)
