"""`fit_curvature`: one pass over the data, any estimator, any engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from posthoc_bhpeft.batches import device_of, evaluating, forward, labelled_rows, move, split_batch
from posthoc_bhpeft.blocks import (
    Block,
    CheckedTape,
    Engine,
    Observation,
    Observed,
    Product,
    Tape,
    observing,
    with_products,
)
from posthoc_bhpeft.curvature.estimator import Accumulator, Curvature, FittedCurvature
from posthoc_bhpeft.curvature.partial import PartialFit
from posthoc_bhpeft.curvature.resuming import Keeper
from posthoc_bhpeft.errors import DataError, NonFiniteError
from posthoc_bhpeft.likelihood import Likelihood
from posthoc_bhpeft.linalg import BlockOperator
from posthoc_bhpeft.shards import processes_of

Progress = Callable[[Iterable[Any]], Iterable[Any]]


def fit_curvature(
    model: nn.Module,
    blocks: Sequence[Block],
    batches: Iterable[Any],
    likelihood: Likelihood,
    estimator: Curvature,
    *,
    engine: Engine = observing,
    products: Sequence[Product] = (),
    generator: torch.Generator | None = None,
    keeper: Keeper | None = None,
    progress: Progress = iter,
) -> FittedCurvature:
    """Sum the curvature of every block, and the log likelihood, over the data.

    Where the batches are a `Shard`, over the parts of all processes, which then have the same.

    Args:
        model: Differentiated at its present weights, in evaluation mode; unchanged afterwards.
        blocks: From `discover`.
        batches: Labelled batches; rows labelled -100 are left out.
        likelihood: Gives the Hessian in the outputs.
        estimator: Output directions, and the structure of each block.
        engine: Makes the tape; `observing` uses forward hooks.
        products: From `find_products`; each gets a curvature of its own, beside its factors'.
        generator: Randomness of `RandomSigns`, on the CPU; seeded with 0 by default.
        keeper: From `Resume.open`, to go on where a fit was killed.
        progress: Wraps the batches, for a progress bar.

    Returns:
        One operator a block and product, the log likelihood in nats, numbers of rows and outputs.

    Raises:
        DataError: If a batch has no labels, or labels that do not fit the outputs.
        NonFiniteError: If outputs or gradients are NaN or infinite.
        ConfigError: If there are products, and the engine does not tell inputs from gradients.
        DeadBlockError: If a block took no part in a forward pass.
        ModelError: If the model mixes the rows of a batch.
        ProcessError: If another process failed.
    """
    generator = generator or torch.Generator().manual_seed(0)
    fit = PartialFit.empty(model, estimator, (*blocks, *products))
    processes = processes_of(batches)
    with processes.together(), evaluating(model), engine(model, blocks) as tape:
        shown = progress(batches)
        checked = CheckedTape(tape, model, blocks, again=True)
        for batch in shown if keeper is None else keeper.remaining(shown, fit, generator):
            take_in(batch, fit, model, checked, likelihood, estimator, products, generator)
    fit.over_all(processes)
    operators = {name: check_finite(name, total.finish()) for name, total in fit.sums.items()}
    return FittedCurvature(operators, fit.log_likelihood, fit.n_rows, fit.n_outputs)


def take_in(
    batch: Any,
    fit: PartialFit,
    model: nn.Module,
    tape: Tape,
    likelihood: Likelihood,
    estimator: Curvature,
    products: Sequence[Product],
    generator: torch.Generator,
) -> None:
    """Add one batch to a fit: a forward pass, and a backward pass a direction."""
    inputs, labels = split_batch(batch)
    if labels is None:
        raise DataError("A batch without labels came up while fitting the curvature.")
    device = device_of(model)
    keep = labelled_rows(labels)
    if not bool(keep.any()):
        return
    outputs = forward(model, move(inputs, device), positions=likelihood.positions)
    # With a device_map the outputs may lie elsewhere than the inputs.
    labels, keep = labels.to(outputs.device), keep.to(outputs.device)
    likelihood.check_labels(outputs[keep], labels[keep])
    fixed = outputs.detach()
    fit.log_likelihood -= float(likelihood.nll(fixed[keep], labels[keep]).double().sum())
    fit.n_rows, fit.n_outputs = fit.n_rows + int(keep.sum()), outputs.shape[-1]
    directions = masked_directions(estimator, likelihood, fixed, labels, keep, generator)
    add_batch(tape, outputs, directions, keep, fit.sums, products)


def masked_directions(
    estimator: Curvature,
    likelihood: Likelihood,
    outputs: Tensor,
    labels: Tensor,
    keep: Tensor,
    generator: torch.Generator | None,
) -> Tensor:
    """Directions `(K, N, ...)`, zero in rows without a label so that these add nothing."""
    drawn = estimator.directions.draw(likelihood, outputs[keep], labels[keep], generator)
    directions = drawn.new_zeros(len(drawn), *outputs.shape)
    directions[:, keep] = drawn
    return directions


def add_batch(
    tape: Tape,
    outputs: Tensor,
    directions: Tensor,
    keep: Tensor,
    sums: Mapping[str, Accumulator],
    products: Sequence[Product] = (),
) -> None:
    """One backward pass a direction, each observation of the rows kept added to its sum."""
    last, every_row = len(directions) - 1, bool(keep.all())

    def add(one: Observed, seen: Observation) -> None:
        # Zero gradients would do for most structures, but K-FAC counts rows and their inputs.
        if not every_row:
            kept = keep.to(seen.rows.device)
            seen = replace(seen, rows=seen.rows[kept], columns=seen.columns[kept])
        sums[one.name].add(seen)

    see = with_products(add, products)
    for index, direction in enumerate(directions):
        tape.observe(outputs, direction, see, retain=index < last)


def check_finite(name: str, operator: BlockOperator) -> BlockOperator:
    """The operator, unless it holds NaN or infinity."""
    # A sum is finite only if every term is, and takes a fifth of the time of looking at each.
    if not all(bool(torch.isfinite(tensor.sum())) for tensor in operator.tensors().values()):
        raise NonFiniteError(
            f"The curvature of block {name!r} is NaN or infinite: gradients overflowed. Run the "
            "fit in float32 or bfloat16, or freeze this block."
        )
    return operator
