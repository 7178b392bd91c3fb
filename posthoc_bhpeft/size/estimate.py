"""`Estimate`: bytes and passes of a fit before any of it is done, and what would be cheaper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from posthoc_bhpeft import memory
from posthoc_bhpeft.blocks import Kind, Observed
from posthoc_bhpeft.curvature import Curvature, DiagonalGGN, KroneckerGGN, Placed
from posthoc_bhpeft.curvature.sides import OVERSAMPLING
from posthoc_bhpeft.size.blocks import (
    BlockBytes,
    block_bytes,
    decomposing,
    innermost,
    item_size,
    placed_on,
)
from posthoc_bhpeft.size.choosing import choosing_bytes
from posthoc_bhpeft.size.passes import Passes, count_passes
from posthoc_bhpeft.size.table import Table, bytes_text, count_text, number_text
from posthoc_bhpeft.size.work import Work

LARGEST = 3
"""Blocks that are named in a table."""

RANKS = (64, 16)
"""Of low-rank sides, among what would be cheaper."""

WORTH_IT = 0.99
"""Of the peak; what saves less is not named."""


@dataclass(frozen=True)
class Estimate:
    """What a fit will need.

    ```python
    print(estimate(model, loader))
    ```

    Attributes:
        work: What is to be done.
        change: How that differs from what was asked for; empty where it does not.
    """

    work: Work
    change: str = ""

    @cached_property
    def blocks(self) -> tuple[BlockBytes, ...]:
        """Bytes of every block and product."""
        work = self.work
        item = item_size(work.curvature, work.item)
        parts: tuple[Observed, ...] = (*work.blocks, *work.products)
        return tuple(block_bytes(work.curvature, part, item) for part in parts)

    @property
    def n_weights(self) -> int:
        """`P`, of all blocks."""
        return sum(block.size for block in self.work.blocks)

    @property
    def passes(self) -> tuple[Passes, ...]:
        """Of the fit, the prior rule and a prediction; none where no batch was measured."""
        work = self.work
        if work.batch is None:
            return ()
        return count_passes(
            work.curvature,
            work.likelihood,
            work.prior,
            work.predictive,
            work.batch.outputs,
            work.data,
        )

    @property
    def factors_on(self) -> torch.device:
        """Where sums, factors and bases are."""
        return placed_on(self.work.curvature, self.work.device)

    @property
    def apart(self) -> bool:
        """Whether factors are kept on another device than the model."""
        return self.factors_on != self.work.device

    @property
    def resting(self) -> int:
        """Of a fitted posterior, wherever it is."""
        return sum(block.resting for block in self.blocks)

    @property
    def saved(self) -> int:
        """Of its file."""
        return sum(block.saved for block in self.blocks)

    @property
    def factor_phases(self) -> dict[str, int]:
        """Of sums and factors alone, by phase, wherever they are."""
        return {
            "summing over the data": sum(block.summing for block in self.blocks),
            "decomposing": self.resting + decomposing(self.blocks, self.factors_on),
        }

    @property
    def phases(self) -> dict[str, int]:
        """Bytes on the model's device by phase, beside the model's own."""
        work, batch = self.work, self.work.batch
        phases = {} if self.apart else self.factor_phases
        if batch is None:
            return phases
        there = max(b.resting for b in self.blocks) if self.apart else self.resting
        # A rule that reads rows more than once gives up what it held of them before.
        passes = {
            one.step.split(",")[0]: (one.backward or 0) // max(one.forward or 1, 1)
            for one in self.passes
        }
        row, passing = batch.rows * work.item * self.n_weights, batch.summing(work.blocks)
        phases["summing over the data"] = phases.get("summing over the data", 0) + passing
        if passes["prior"]:
            choosing = choosing_bytes(work, passes["prior"])
            phases["choosing the prior"] = there + choosing.peak(work.device.type == "cpu")
        phases["predicting a batch"] = there + passing + passes["predict"] * row
        return phases

    @property
    def peak(self) -> int:
        """The most that is needed on the model's device, beside the model itself."""
        return max(self.phases.values(), default=0)

    @property
    def elsewhere(self) -> int:
        """The most that is needed where factors are kept apart from the model."""
        return max(self.factor_phases.values()) if self.apart else 0

    def fits(self, place: torch.device | str | int) -> bool:
        """Whether there is room.

        Args:
            place: A device, on which the model is already and whose free memory counts; or the
                bytes of a card that is to hold the model too.
        """
        if isinstance(place, int):
            return self.work.model_bytes + self.peak <= place
        free = memory.available_memory(torch.device(place))
        if not self.apart:
            return self.peak <= free
        return self.peak <= free and self.elsewhere <= memory.available_memory(self.factors_on)

    def cheaper(self) -> tuple[Estimate, ...]:
        """The nearest settings that need less on the model's device, the smallest change first."""
        needed = WORTH_IT * self.peak
        return tuple(one for one in alternatives(self) if one.peak < needed)

    def __str__(self) -> str:
        parts = [headline(self), *map(str, tables(self)), not_counted(self)]
        return "\n\n".join(parts)


def alternatives(chosen: Estimate) -> list[Estimate]:
    """Other settings: low rank, off the device, a diagonal, smaller batches, fewer blocks."""
    work, inner = chosen.work, innermost(chosen.work.curvature)
    found = []
    if isinstance(inner, KroneckerGGN):
        for rank in RANKS:
            if (inner.rank is None or rank < inner.rank) and (OVERSAMPLING + 1) * rank < inner.wide:
                lower = replace(inner, rank=rank)
                found.append(with_curvature(chosen, lower, f"KroneckerGGN(rank={rank})"))
    if not chosen.apart and work.device.type != "cpu":
        found.append(with_curvature(chosen, Placed(work.curvature), 'Placed(..., device="cpu")'))
    if not isinstance(inner, DiagonalGGN):
        diagonal = DiagonalGGN(work.curvature.directions)
        found.append(with_curvature(chosen, diagonal, "DiagonalGGN()"))
    batch = work.batch
    if batch is not None and batch.rows > 1:
        fewer, half = replace(batch, rows=batch.rows // 2), batch.rows // 2
        smaller = replace(work, batch=fewer, data=replace(work.data, batch_size=half))
        found.append(Estimate(smaller, f"batches of {half} rows"))
    return [*found, *frozen(chosen)]


def with_curvature(chosen: Estimate, curvature: Curvature, change: str) -> Estimate:
    """The same work with another estimator."""
    return Estimate(replace(chosen.work, curvature=curvature), change)


def frozen(chosen: Estimate) -> list[Estimate]:
    """The same work without the blocks of one kind, for each kind that is not all there is."""
    work = chosen.work
    kinds: Sequence[Kind] = list(dict.fromkeys(block.kind for block in work.blocks))
    if len(kinds) < 2:
        return []
    found = []
    for kind in kinds:
        left = tuple(block for block in work.blocks if block.kind is not kind)
        names = {block.name for block in left}
        pairs = tuple(
            one for one in work.products if all(factor.name in names for factor in one.factors)
        )
        fewer = replace(work, blocks=left, products=pairs)
        found.append(Estimate(fewer, f"freeze the {kind.value} blocks"))
    return found


def headline(estimate: Estimate) -> str:
    """What is to be fitted, and the two numbers that matter."""
    work, batch = estimate.work, estimate.work.batch
    shape = "" if batch is None else f", batches of {batch.rows} rows of {batch.positions} tokens"
    where = f" on {device_text(estimate)}"
    if estimate.apart:
        where += f", and {bytes_text(estimate.elsewhere)} on the {estimate.factors_on}"
    return (
        f"{work.curvature}: {len(work.blocks)} blocks, {count_text(estimate.n_weights)} weights"
        f"{shape}.\nAt most {bytes_text(estimate.peak)}{where}, beside the model's own "
        f"{bytes_text(work.model_bytes)}."
    )


def tables(estimate: Estimate) -> tuple[Table, ...]:
    """By block, by phase, passes, and what would be cheaper."""
    found = [block_table(estimate), phase_table(estimate)]
    if estimate.passes:
        found.append(pass_table(estimate))
    cheaper = cheaper_table(estimate)
    return (*found, cheaper) if cheaper.rows else tuple(found)


def block_table(estimate: Estimate) -> Table:
    """Kinds, then the largest blocks."""
    kinds: dict[str, list[BlockBytes]] = {}
    for block in estimate.blocks:
        kinds.setdefault("products" if block.kind is None else block.kind.value, []).append(block)
    rows = [block_row(f"{kind} ({len(ones)})", ones) for kind, ones in kinds.items()]
    largest = sorted(estimate.blocks, key=lambda block: -block.resting)[:LARGEST]
    rows += [block_row(f"  {short(block)}", [block]) for block in largest]
    columns = ("blocks, and the largest", "summing", "at rest", "in a file")
    return Table("Curvature", columns, tuple(rows))


def block_row(name: str, blocks: Sequence[BlockBytes]) -> tuple[str, ...]:
    """Sums over blocks."""
    sums = (sum(b.summing for b in blocks), sum(b.resting for b in blocks))
    return (name, *map(bytes_text, (*sums, sum(b.saved for b in blocks))))


def short(block: BlockBytes, longest: int = 28) -> str:
    """The end of a block's name, with its shape."""
    name = block.name if len(block.name) <= longest else f"...{block.name[3 - longest :]}"
    return f"{name} {block.shape[0]} x {block.shape[1]}"


def phase_table(estimate: Estimate) -> Table:
    """Bytes by phase, and of a batch."""
    rows = [(name, bytes_text(size)) for name, size in estimate.phases.items()]
    batch = estimate.work.batch
    if batch is not None:
        largest = bytes_text(batch.cotangent(estimate.work.blocks))
        rows += [
            ("  of it activations of a batch", bytes_text(batch.activations)),
            ("  of it the gradient at a layer", largest),
        ]
    if estimate.apart:
        rows += [
            (f"{name}, on {estimate.factors_on}", bytes_text(size))
            for name, size in estimate.factor_phases.items()
        ]
    return Table("Memory, beside the model", ("at most, while", "bytes"), tuple(rows))


def pass_table(estimate: Estimate) -> Table:
    """Passes a batch, and how many batches."""
    rows = tuple(
        (one.step, *map(number_text, (one.batches, one.forward, one.backward)))
        for one in estimate.passes
    )
    return Table("Passes", ("step", "batches", "forward", "backward"), rows)


def cheaper_table(estimate: Estimate) -> Table:
    """What would need less."""
    rows = tuple(
        (one.change, *map(bytes_text, (one.peak, one.elsewhere, one.resting, one.saved)))
        for one in estimate.cheaper()
    )
    columns = ("instead", f"on {device_text(estimate)}", "elsewhere", "at rest", "in a file")
    return Table("Cheaper", columns, rows)


def not_counted(estimate: Estimate) -> str:
    """The end of an estimate: what it leaves out."""
    if estimate.work.batch is None:
        return "Not counted: the activations of a batch."
    return (
        "Activations were counted in a forward pass of one row. Not counted: workspace of kernels, "
        "memory that an allocator holds back, and what the loader keeps."
    )


def device_text(estimate: Estimate) -> str:
    """Where the model is, or will be."""
    device = estimate.work.device
    return "its device" if device.type == "meta" else str(device)
