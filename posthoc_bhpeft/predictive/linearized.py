r"""`Linearized`: the model linearised in its weights, so that its outputs are Gaussian.

    f(x; w) ~ f(x; theta) + J(x) (w - theta)   =>   outputs ~ N(f, V),   V = J Sigma J^T  (C, C)

(Immer et al. 2021, https://arxiv.org/abs/2008.08400). `J` is never formed for the whole set:
each output direction costs one backward pass, and a block's per-sample gradient is projected into
the eigenbasis of its curvature, where the posterior covariance is diagonal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from posthoc_bhpeft.batches import Inputs, device_of, evaluating, forward, move
from posthoc_bhpeft.blocks import Block, Engine, Tape, observing
from posthoc_bhpeft.likelihood import Likelihood
from posthoc_bhpeft.linalg import Eigenbasis
from posthoc_bhpeft.posterior import Posterior
from posthoc_bhpeft.predictive.links import ClassPreserving, Link
from posthoc_bhpeft.predictive.prediction import Prediction
from posthoc_bhpeft.predictive.uncertainty import predict_gaussian_outputs


@dataclass(frozen=True)
class Linearized:
    """Linearised predictive with the full covariance of the outputs.

    Args:
        link: From Gaussian logits to probabilities.
        centred: Take the covariance of the centred logits, by `C - 1` backward passes. A softmax
            does not change when all its logits move together, so nothing is lost; with `False`
            the covariance is of the logits themselves, by `C` passes, as laplace-torch has it.
    """

    link: Link = field(default_factory=ClassPreserving)
    centred: bool = True

    def predict(
        self,
        model: nn.Module,
        posterior: Posterior,
        likelihood: Likelihood,
        inputs: Inputs,
        *,
        engine: Engine = observing,
    ) -> Prediction:
        """Predict one batch.

        Args:
            model: At the posterior's mean; unchanged.
            posterior: Over its blocks.
            likelihood: Of the labels given outputs.
            inputs: Keyword arguments or a tensor.
            engine: Makes the tape.

        Returns:
            Predictions on the model's device.
        """
        device = device_of(model)
        with evaluating(model), engine(model, posterior.blocks) as tape:
            outputs = forward(model, move(inputs, device))
            contrasts = self.output_directions(likelihood, outputs)
            scales = {block.name: posterior.variances(block).sqrt() for block in posterior.blocks}
            jacobian = projected_jacobian(
                tape, posterior.blocks, posterior.bases, outputs, contrasts, scales
            )
        small = jacobian @ jacobian.transpose(1, 2)  # (N, K, K)
        covariance = contrasts @ small.to(contrasts) @ contrasts.T
        return predict_gaussian_outputs(likelihood, outputs.detach(), covariance, self.link)

    def output_directions(self, likelihood: Likelihood, outputs: Tensor) -> Tensor:
        """Orthonormal output directions `(C, K)` that the covariance is taken in."""
        n_outputs = outputs.shape[-1]
        if self.centred:
            return likelihood.contrasts(n_outputs).to(outputs)
        return torch.eye(n_outputs, dtype=outputs.dtype, device=outputs.device)


def projected_jacobian(
    tape: Tape,
    blocks: Sequence[Block],
    bases: Mapping[str, Eigenbasis],
    outputs: Tensor,
    directions: Tensor,
    scales: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Gradients of `K` output directions at every weight, in the eigenbases of the blocks.

    Args:
        tape: Of the forward pass that made `outputs`.
        blocks: All blocks, in the tape's order.
        bases: Eigenbasis of each block.
        outputs: `(N, C)`.
        directions: `(C, K)`; one backward pass a column.
        scales: `(p, q)` of each block, multiplied into its coordinates; such as standard
            deviations.

    Returns:
        `(N, K, P)` with `P` the number of weights of all blocks.
    """
    n_rows, n_directions = len(outputs), directions.shape[1]
    size = sum(block.size for block in blocks)
    jacobian = outputs.new_empty(n_rows, n_directions, size)
    for k in range(n_directions):
        direction = directions[:, k].expand_as(outputs)
        start = 0
        for block, seen in tape.observe(outputs, direction, retain=k < n_directions - 1):
            coordinates = bases[block.name].project(seen.gradient())
            if scales is not None:
                coordinates = coordinates * scales[block.name].to(coordinates)
            jacobian[:, k, start : start + block.size] = coordinates.flatten(1)
            start += block.size
    return jacobian
