"""Bytes while the prior is chosen: gradients of training rows, and their inner products."""

from __future__ import annotations

from dataclasses import dataclass

from posthoc_bhpeft.predictive.gradients import SKETCH_SIZE
from posthoc_bhpeft.selection import LeaveOneOut
from posthoc_bhpeft.selection.rule import without_log_odds
from posthoc_bhpeft.size.blocks import DECOMPOSING
from posthoc_bhpeft.size.passes import reading_rule
from posthoc_bhpeft.size.work import Work

PLACES = 4 + 4 + 1
"""Bytes a weight: its bin, its bucket in a sketch, its sign."""

AT_ONCE = 3
"""Copies of a block's gradients: themselves, in the eigenbasis, and squared or signed."""


@dataclass(frozen=True)
class ChoosingBytes:
    """Beside the posterior.

    Attributes:
        passing: On the model's device, while a batch passes.
        kept: On the processor, from the first batch on.
        comparing: On the processor, while rows are compared; no batch passes meanwhile.
    """

    passing: int
    kept: int
    comparing: int

    def peak(self, on_processor: bool) -> int:
        """On the model's device."""
        if not on_processor:
            return self.passing
        return self.kept + max(self.passing, self.comparing)


def choosing_bytes(work: Work, directions: int) -> ChoosingBytes:
    """Of a rule that reads rows by `directions` backward passes a batch.

    Args:
        work: Whose batch was measured.
        directions: Along which gradients of a batch are there at once.
    """
    batch = work.batch
    if batch is None:
        return ChoosingBytes(0, 0, 0)
    largest = max(block.size for block in work.blocks)
    n_weights = sum(block.size for block in work.blocks)
    # Along the first direction a block's gradient is gone when the next block's comes.
    row = AT_ONCE * largest + (directions * n_weights if directions > 1 else 0)
    passing = batch.activations + batch.cotangent(work.blocks) + batch.rows * work.item * row
    answers = left_out_answers(work)
    kept = work.item * answers * min(SKETCH_SIZE, n_weights)
    return ChoosingBytes(passing + PLACES * n_weights, kept, DECOMPOSING * answers**2)


def left_out_answers(work: Work) -> int:
    """Answers that are each judged by the model without them; 0 where none are."""
    rule = reading_rule(work.prior)
    if not isinstance(rule, LeaveOneOut) or without_log_odds(work.likelihood):
        return 0
    rows = work.data.read(rule.max_rows)
    n_outputs = 1 if work.batch is None else work.batch.outputs[-1]
    return rows * rule.answers_a_row(work.likelihood, n_outputs, rows)
