"""Operators and priors in float64, whatever they were fitted in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from posthoc_bhpeft.blocks import Block
from posthoc_bhpeft.linalg import BlockOperator, KroneckerOperator, OperatorSum
from posthoc_bhpeft.prior import GaussianPrior


def double_like(tensor: Tensor) -> Tensor:
    """An empty float64 tensor on the device, or on the CPU where the device has no float64."""
    device = "cpu" if tensor.device.type == "mps" else tensor.device
    return torch.empty(0, dtype=torch.float64, device=device)


def converted(operator: BlockOperator, like: Tensor) -> BlockOperator:
    """The same operator in the dtype and on the device of a tensor."""
    if isinstance(operator, OperatorSum):
        return OperatorSum(tuple(converted(term, like) for term in operator.terms))
    if isinstance(operator, KroneckerOperator):
        # A side in low rank is one field and three tensors.
        sides = (operator.left, operator.right)
        return KroneckerOperator(*(side.to(device=like.device, dtype=like.dtype) for side in sides))
    fields = {name: tensor.to(like) for name, tensor in operator.tensors().items()}
    return cast(BlockOperator, replace(cast(Any, operator), **fields))


def in_double(prior: GaussianPrior, block: Block, like: Tensor) -> GaussianPrior:
    """One block's share of a prior, in float64 on a device."""
    name = block.name
    return GaussianPrior(
        {name: prior.precision[name]},
        {name: prior.mean[name].to(like)} if name in prior.mean else {},
        {name: converted(prior.carried[name], like)} if name in prior.carried else {},
    )
