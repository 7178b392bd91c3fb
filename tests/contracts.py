"""One contract function a noun: what a block, an estimator and a predictive must satisfy.

A contributor's own class is tested by a call of one of these:

```python
check_block(model, block, batch)            # a block of your own recognizer
check_curvature(MyEstimator())              # a structure for the curvature
check_predictive(MyPredictive())            # a way to predict
```
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from posthoc_bhpeft.batches import evaluating, forward, split_batch
from posthoc_bhpeft.blocks import Block, Engine, Observation, Tape, discover, observing
from posthoc_bhpeft.curvature import Curvature, fit_curvature
from posthoc_bhpeft.likelihood import Categorical, Likelihood
from posthoc_bhpeft.linalg import BlockOperator
from posthoc_bhpeft.predictive import Prediction
from tests.models import mlp, pairs, posterior_of, seeded
from tests.oracles import dense_ggn, per_sample, symmetric_positive


def observations(
    model: nn.Module,
    blocks: tuple[Block, ...],
    batch: Any,
    direction: Tensor,
    engine: Engine = observing,
) -> dict[str, Observation]:
    """Each block's observation of one output direction `(N, C)`."""
    inputs, _ = split_batch(batch)
    with evaluating(model), engine(model, blocks) as tape:
        outputs = forward(model, inputs)
        seen = seen_by(tape, outputs, direction)
    return {block.name: seen[block.name] for block in blocks}


def seen_by(
    tape: Tape, outputs: Tensor, direction: Tensor, *, retain: bool = False
) -> dict[str, Observation]:
    """What a tape shows, by block, each block once."""
    found: dict[str, Observation] = {}

    def see(block: Block, observation: Observation) -> None:
        assert block.name not in found
        found[block.name] = observation

    tape.observe(outputs, direction, see, retain=retain)
    return found


def any_direction(model: nn.Module, batch: Any, seed: int = 0) -> Tensor:
    """A random output direction for every row, `(N, C)`."""
    inputs, _ = split_batch(batch)
    with evaluating(model), torch.no_grad():
        outputs = forward(model, inputs)
    return torch.randn(outputs.shape, generator=seeded(seed), dtype=torch.float64).to(outputs)


def check_block(
    model: nn.Module,
    block: Block,
    batch: Any,
    *,
    engine: Engine = observing,
    tolerance: float = 1e-9,
) -> None:
    """A block's view is a matrix of its tensor, and its per-sample gradients are right.

    Args:
        model: The model that the block is of.
        block: From your recognizer.
        batch: At least two rows.
        engine: Makes the tape.
        tolerance: Relative; raise it for models that compute in float32 inside.
    """
    parameter = dict(model.named_parameters())[block.parameter]
    check_view(block, parameter.detach())
    direction = any_direction(model, batch)
    seen = observations(model, (block,), batch, direction, engine)[block.name]
    n_rows = len(direction)
    assert seen.rows.shape == (n_rows, seen.rows.shape[1], block.shape[0])
    assert seen.columns.shape == (n_rows, seen.rows.shape[1], block.shape[1])
    inputs, _ = split_batch(batch)
    with evaluating(model):
        scalars = (forward(model, inputs) * direction).sum(1)
        exact = per_sample(model, (block,), scalars)[block.name]
    gradient = seen.gradient()
    assert gradient.shape == exact.shape
    # A gradient that is zero everywhere would agree with anything that is.
    assert exact.norm() > 0, f"{block.name} has no effect on the outputs of this batch"
    error = (gradient - exact).abs().amax((1, 2))
    assert bool((error <= tolerance * exact.abs().max()).all()), (block.name, error)
    assert torch.allclose(gradient.sum(0), exact.sum(0), atol=tolerance * float(exact.abs().sum()))


def check_view(block: Block, parameter: Tensor) -> None:
    """`write` puts back what `read` took, and touches nothing else."""
    p, q = block.shape
    matrix = torch.arange(1.0, p * q + 1, dtype=torch.float64).reshape(p, q)
    empty = torch.zeros(parameter.shape, dtype=torch.float64)
    block.view.write(empty, matrix)
    assert torch.equal(block.view.read(empty), matrix)
    assert int((empty != 0).sum()) == block.size == p * q


def check_curvature(
    estimator: Curvature, *, exact_trace: bool = True, random: bool = False
) -> None:
    """What every estimator of the block GGN must satisfy, whatever its structure.

    Args:
        estimator: Yours.
        exact_trace: Whether its trace must equal that of the exact GGN.
        random: Whether two fits with different generators may differ.
    """
    model, loader, likelihood = mlp(3, 4, 3), pairs((5, 3), 3), Categorical()
    blocks = discover(model)

    def fit(batches: Any, seed: int = 0) -> dict[str, BlockOperator]:
        return dict(
            fit_curvature(
                model, blocks, batches, likelihood, estimator, generator=seeded(seed)
            ).operators
        )

    operators, exact = fit(loader), dense_ggn(model, blocks, loader, likelihood)
    assert list(operators) == [block.name for block in blocks]
    for block in blocks:
        operator = operators[block.name]
        check_operator(operator, block.shape)
        numbers = sum(tensor.numel() for tensor in operator.tensors().values())
        assert numbers <= estimator.storage(block), "storage() promises too little memory"
        if exact_trace and not random:
            assert torch.allclose(operator.trace(), exact[block.name].trace())
    if random:
        check_random(fit(loader), fit(loader, 1), operators)
        return
    twice, split = fit([*loader, *loader]), fit([half for b in loader for half in halves(b)])
    for name, operator in operators.items():
        dense = operator.dense()
        assert torch.allclose(twice[name].dense(), 2 * dense), "no sum over data"
        assert torch.allclose(split[name].dense(), dense), "depends on how rows are batched"


def halves(batch: tuple[Tensor, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """One batch as two, of different sizes."""
    inputs, labels = batch
    return [(inputs[:2], labels[:2]), (inputs[2:], labels[2:])]


def check_random(
    same: dict[str, BlockOperator],
    other: dict[str, BlockOperator],
    first: dict[str, BlockOperator],
) -> None:
    """The same generator gives the same curvature, another one another."""
    for name, operator in first.items():
        assert torch.equal(same[name].dense(), operator.dense()), "not reproducible"
    assert any(not torch.equal(other[n].dense(), o.dense()) for n, o in first.items())


def check_operator(operator: BlockOperator, shape: tuple[int, int]) -> None:
    """`matvec`, `trace`, `scale` and `decompose` all agree with `dense`."""
    check_map(operator, shape)
    matrix = torch.randn(2, *shape, generator=seeded(), dtype=torch.float64)
    check_eigenbasis(operator, matrix)


def check_map(operator: BlockOperator, shape: tuple[int, int]) -> None:
    """`matvec`, `trace` and `scale` agree with `dense`, which is symmetric and not negative."""
    assert operator.shape == shape
    dense = operator.dense()
    size = shape[0] * shape[1]
    assert dense.shape == (size, size)
    assert symmetric_positive(operator)
    matrix = torch.randn(2, *shape, generator=seeded(), dtype=torch.float64)
    applied = matrix.flatten(1) @ dense
    assert torch.allclose(operator.matvec(matrix).flatten(1), applied)
    assert torch.allclose(operator.trace(), dense.trace())
    assert torch.allclose(operator.scale(0.3).dense(), 0.3 * dense)


def check_eigenbasis(operator: BlockOperator, matrix: Tensor) -> None:
    """The basis of a single operator is orthonormal and diagonalises it."""
    basis = operator.decompose()
    assert basis.log_volume == 0
    assert basis.eigenvalues.shape == operator.shape
    assert basis.eigenvalues.dtype == torch.float64
    assert bool((basis.eigenvalues >= 0).all())
    coordinates = basis.project(matrix)
    assert torch.allclose(basis.unproject(coordinates), matrix)
    assert torch.allclose(coordinates.flatten(1).norm(dim=1), matrix.flatten(1).norm(dim=1))
    applied = basis.unproject(basis.eigenvalues * coordinates)
    scale = float(basis.eigenvalues.max()) + 1e-30
    assert torch.allclose(applied / scale, operator.matvec(matrix) / scale)


def check_predictive(predictive: Any, likelihood: Likelihood | None = None) -> None:
    """What every predictive must satisfy on a classifier.

    Args:
        predictive: Yours.
        likelihood: Of three classes; `Categorical()` by default.
    """
    likelihood = likelihood or Categorical()
    model, loader = mlp(3, 4, 3), pairs((6, 3), 3)
    inputs = loader[0][0]
    before = {name: p.clone() for name, p in model.named_parameters()}
    posterior = posterior_of(model, loader, likelihood=likelihood)
    state = torch.get_rng_state()
    prediction = predictive.predict(model, posterior, likelihood, inputs)
    check_prediction(prediction, 6, 3)
    again = predictive.predict(model, posterior, likelihood, inputs)
    same_prediction(prediction, again, tolerance=0)
    for row in range(len(inputs)):
        alone = predictive.predict(model, posterior, likelihood, inputs[row : row + 1])
        same_prediction(rows_of(prediction, [row]), alone, tolerance=1e-9)
    assert torch.equal(torch.get_rng_state(), state), "uses the global random state"
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None
    check_certain(predictive, model, loader, likelihood)


def check_prediction(prediction: Prediction, n_rows: int, n_outputs: int) -> None:
    """Shapes, probabilities that are some, entropies in order; no column holds a graph."""
    assert len(prediction) == n_rows
    assert prediction.logits.shape == prediction.probabilities.shape == (n_rows, n_outputs)
    assert bool((prediction.probabilities >= 0).all())
    if not prediction.multilabel:
        ones = prediction.probabilities.new_ones(n_rows)
        assert torch.allclose(prediction.probabilities.sum(-1), ones)
    assert bool((prediction.probabilities <= 1 + 1e-9).all())
    for entropy in (prediction.total, prediction.aleatoric, prediction.epistemic):
        assert entropy.shape == (n_rows,)
        assert bool((entropy >= 0).all())
    assert torch.allclose(prediction.total, prediction.aleatoric + prediction.epistemic)
    if prediction.covariance is not None:
        assert prediction.covariance.shape == (n_rows, n_outputs, n_outputs)
        assert bool((torch.linalg.eigvalsh(prediction.covariance) > -1e-9).all())
    for column in prediction.columns().values():
        assert column is None or not column.requires_grad


def check_certain(predictive: Any, model: nn.Module, loader: Any, likelihood: Likelihood) -> None:
    """With an enormous prior precision only the model itself is left."""
    certain = posterior_of(model, loader, precision=1e12, likelihood=likelihood)
    inputs = loader[0][0]
    prediction = predictive.predict(model, certain, likelihood, inputs)
    point = model(inputs).detach()
    expected = point.sigmoid() if prediction.multilabel else point.softmax(-1)
    assert torch.allclose(prediction.probabilities, expected, atol=1e-5)
    assert bool((prediction.epistemic < 1e-5).all())


def rows_of(prediction: Prediction, rows: list[int]) -> Prediction:
    """Some rows of a prediction."""
    columns = {n: None if c is None else c[rows] for n, c in prediction.columns().items()}
    return Prediction(**columns, multilabel=prediction.multilabel)


def same_prediction(one: Prediction, other: Prediction, tolerance: float) -> None:
    """Every column of two predictions agrees."""
    for field in fields(Prediction):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, Tensor):
            assert torch.allclose(a, b, rtol=0, atol=tolerance), field.name
        else:
            assert a == b, field.name
