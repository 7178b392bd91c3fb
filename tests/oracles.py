"""Dense oracles: Jacobian, GGN, posterior and evidence as full matrices, without a hook.

Derivatives come from `torch.func` on the whole model, second derivatives of the likelihood from
its `nll`, so nothing here shares a line with what it judges. For tiny float64 models only.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from posthoc_bhpeft.batches import split_batch
from posthoc_bhpeft.blocks import Block
from posthoc_bhpeft.likelihood import Likelihood
from posthoc_bhpeft.linalg import BlockOperator
from posthoc_bhpeft.posterior import Posterior


def outputs_of(model: nn.Module, inputs: Any, parameters: Mapping[str, Tensor] | None = None):
    """Outputs `(N, C)`, at other parameters where given."""
    args, kwargs = ((inputs,), {}) if isinstance(inputs, Tensor) else ((), dict(inputs))
    result = torch.func.functional_call(model, dict(parameters or {}), args, kwargs)
    return getattr(result, "logits", result)


def jacobian(model: nn.Module, blocks: Sequence[Block], batch: Any) -> dict[str, Tensor]:
    """`d f_nc / d block`, shape `(N, C, p, q)` by block name, by `jacrev` through the model."""
    inputs, _ = split_batch(batch)
    trained = {block.parameter for block in blocks}
    parameters = {n: p.detach() for n, p in model.named_parameters() if n in trained}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a slow batching rule of fused attention
        whole = torch.func.jacrev(lambda p: outputs_of(model, inputs, p))(parameters)
    return {
        block.name: torch.stack(
            [
                torch.stack([block.view.read(one) for one in row])
                for row in whole[block.parameter].detach()
            ]
        )
        for block in blocks
    }


def output_hessians(likelihood: Likelihood, outputs: Tensor, labels: Tensor) -> Tensor:
    """`d^2 nll / d f^2` of each row, `(N, C, C)`, by autograd."""
    return torch.stack(
        [
            torch.func.hessian(lambda f, y=labels[n : n + 1]: likelihood.nll(f[None], y)[0])(f)
            for n, f in enumerate(outputs.detach())
        ]
    )


def dense_ggn(
    model: nn.Module, blocks: Sequence[Block], batches: Iterable[Any], likelihood: Likelihood
) -> dict[str, Tensor]:
    """`sum_n J_n^T H_n J_n` of each block, `(P, P)` in row-major order."""
    total: dict[str, Tensor] = {}
    for batch in batches:
        inputs, labels = split_batch(batch)
        hessians = output_hessians(likelihood, outputs_of(model, inputs), labels)
        for name, jac in jacobian(model, blocks, batch).items():
            flat = jac.flatten(2)
            total[name] = total.get(name, 0) + torch.einsum("ncP,nck,nkQ->PQ", flat, hessians, flat)
    return total


def loss_gradients(
    model: nn.Module, blocks: Sequence[Block], batch: Any, likelihood: Likelihood
) -> dict[str, Tensor]:
    """Gradient of each row's own `nll`, `(N, p, q)` by block name, one backward pass a row."""
    inputs, labels = split_batch(batch)
    losses = likelihood.nll(outputs_of(model, inputs), labels)
    return per_sample(model, blocks, losses)


def per_sample(model: nn.Module, blocks: Sequence[Block], scalars: Tensor) -> dict[str, Tensor]:
    """Gradients `(N, p, q)` of scalars `(N,)` at the parameters, one backward pass each."""
    parameters = dict(model.named_parameters())
    names = list(dict.fromkeys(block.parameter for block in blocks))
    rows = [
        dict(
            zip(
                names,
                torch.autograd.grad(one, [parameters[n] for n in names], retain_graph=True),
                strict=True,
            )
        )
        for one in scalars
    ]
    return {b.name: torch.stack([b.view.read(row[b.parameter]) for row in rows]) for b in blocks}


def relative_error(estimate: Tensor, exact: Tensor) -> float:
    """Relative Frobenius error."""
    return float((estimate - exact).norm() / exact.norm())


def dense_precision(posterior: Posterior) -> dict[str, Tensor]:
    """`d I + H` of each block, `(P, P)`, from the dense form of its operator."""
    return {
        block.name: posterior.curvature[block.name].dense()
        + posterior.prior.precision[block.name] * torch.eye(block.size, dtype=torch.float64)
        for block in posterior.blocks
    }


def dense_output_covariance(model: nn.Module, posterior: Posterior, batch: Any) -> Tensor:
    """`J Sigma J^T`, `(N, C, C)`, summed over blocks."""
    precision = dense_precision(posterior)
    total = 0
    for name, jac in jacobian(model, posterior.blocks, batch).items():
        flat = jac.flatten(2)
        total = total + flat @ torch.linalg.inv(precision[name]) @ flat.transpose(1, 2)
    return total


def symmetric_positive(operator: BlockOperator) -> bool:
    """Whether the dense form is symmetric with no eigenvalue below rounding."""
    matrix = operator.dense()
    smallest = torch.linalg.eigvalsh(matrix).min()
    return bool(torch.allclose(matrix, matrix.T)) and bool(smallest > -1e-9 * matrix.norm())
