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
    Engine,
    Observed,
    Product,
    Tape,
    observing,
    with_products,
)
from posthoc_bhpeft.curvature.estimator import Accumulator, Curvature, FittedCurvature
from posthoc_bhpeft.errors import DataError, ModelError, NonFiniteError
from posthoc_bhpeft.likelihood import Likelihood
from posthoc_bhpeft.linalg import BlockOperator

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
    progress: Progress = iter,
) -> FittedCurvature:
    """Sum the curvature of every block, and the log likelihood, over the data.

    Args:
        model: Differentiated at its present weights, in evaluation mode; unchanged afterwards.
        blocks: From `discover`.
        batches: Labelled batches; rows labelled -100 are left out.
        likelihood: Gives the Hessian in the outputs.
        estimator: Output directions, and the structure of each block.
        engine: Makes the tape; `observing` uses forward hooks.
        products: From `find_products`; each gets a curvature of its own, beside its factors'.
        generator: Randomness of `RandomSigns`; on the CPU.
        progress: Wraps the batches, for a progress bar.

    Returns:
        One operator a block and product, the log likelihood in nats, numbers of rows and outputs.

    Raises:
        DataError: If a batch has no labels, or labels that do not fit the outputs.
        NonFiniteError: If outputs or gradients are NaN or infinite.
        ConfigError: If there are products, and the engine does not tell inputs from gradients.
        DeadBlockError: If a block took no part in a forward pass.
        ModelError: If the model mixes the rows of a batch.
    """
    summed: tuple[Observed, ...] = (*blocks, *products)
    sums = {one.name: estimator.accumulator(one) for one in summed}
    device = device_of(model)
    log_likelihood, n_rows, n_outputs = 0.0, 0, 0
    with evaluating(model), engine(model, blocks) as tape:
        for batch in progress(batches):
            inputs, labels = split_batch(batch)
            if labels is None:
                raise DataError("A batch without labels came up while fitting the curvature.")
            labels = labels.to(device)
            keep = labelled_rows(labels)
            if not bool(keep.any()):
                continue
            outputs = forward(model, move(inputs, device), positions=likelihood.positions)
            likelihood.check_labels(outputs[keep], labels[keep])
            if n_rows == 0:
                check_rows_apart(tape, outputs)
            nll = likelihood.nll(outputs.detach()[keep], labels[keep])
            log_likelihood -= float(nll.double().sum())
            n_rows, n_outputs = n_rows + int(keep.sum()), outputs.shape[-1]
            directions = masked_directions(
                estimator, likelihood, outputs.detach(), labels, keep, generator
            )
            add_batch(tape, outputs, directions, keep, sums, products)
    operators = {name: check_finite(name, total.finish()) for name, total in sums.items()}
    return FittedCurvature(operators, log_likelihood, n_rows, n_outputs)


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
    for index, direction in enumerate(directions):
        observed = tape.observe(outputs, direction, retain=index < last)
        for one, seen in with_products(observed, products):
            # Zero gradients would do for most structures, but K-FAC counts rows and their inputs.
            if not every_row:
                seen = replace(seen, rows=seen.rows[keep], columns=seen.columns[keep])
            sums[one.name].add(seen)


def check_rows_apart(tape: Tape, outputs: Tensor) -> None:
    """Raise if outputs of the last row depend on what a block computed for another row.

    Gradients a row would be wrong, and their sum right, so that nothing else would tell: rows are
    mixed by statistics over the batch, or the batch is not the axis that it is taken for.

    Raises:
        ModelError: Naming the block.
    """
    direction = torch.zeros_like(outputs)
    direction[-1, ..., 0] = 1
    for block, seen in tape.observe(outputs, direction, retain=True):
        size = seen.gradient().abs().amax((1, 2))
        if bool((size[:-1] > 1e-4 * size.max()).any()):
            raise ModelError(
                f"Block {block.name!r}: outputs of one row depend on what it computes for other "
                "rows of the batch, so there is no gradient a row. Freeze its tensors to leave "
                "them out; if its input has positions first, a batch with fewer rows than "
                "positions may do."
            )


def check_finite(name: str, operator: BlockOperator) -> BlockOperator:
    """The operator, unless it holds NaN or infinity."""
    # A sum is finite only if every term is, and takes a fifth of the time of looking at each.
    if not all(bool(torch.isfinite(tensor.sum())) for tensor in operator.tensors().values()):
        raise NonFiniteError(
            f"The curvature of block {name!r} is NaN or infinite: gradients overflowed. Run the "
            "fit in float32 or bfloat16, or freeze this block."
        )
    return operator
