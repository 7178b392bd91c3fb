r"""`Linearized`: the model linearised in its weights, so that its outputs are Gaussian.

    f(x; w) ~ f(x; theta) + J(x) (w - theta)   =>   outputs ~ N(f, V),   V = J Sigma J^T  (C, C)

(Immer et al. 2021, https://arxiv.org/abs/2008.08400). `J` is never formed for the whole set:
each output direction costs one backward pass, and a block's per-sample gradient is projected into
the eigenbasis of its curvature, where the posterior covariance is diagonal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor, nn

from posthoc_bhpeft.batches import Inputs, device_of, evaluating, forward, move
from posthoc_bhpeft.blocks import Block, CheckedTape, Engine, Observation, Tape, observing
from posthoc_bhpeft.likelihood import Categorical, Likelihood
from posthoc_bhpeft.linalg import Eigenbasis, Metric, inner
from posthoc_bhpeft.linalg.metric import Part
from posthoc_bhpeft.posterior import Posterior
from posthoc_bhpeft.predictive.links import Link, LogOdds
from posthoc_bhpeft.predictive.novelty import novelty_of, unit_metrics
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
        max_passes: Where the covariance would need more backward passes than this and the link
            needs the variance in one direction only, take just that: the same probabilities by
            one pass, and no `covariance` in the prediction.
        tolerance: Variances may be wrong by half of it, relative, so that gradients of wide layers
            are projected on few eigenvectors only (see `linalg.metric`); 0 projects on all.
    """

    link: Link = field(default_factory=LogOdds)
    centred: bool = True
    max_passes: int = 3
    # Out of the text by which a threshold knows its predictions: none moves by so little.
    tolerance: float = field(default=0.01, repr=False)

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

        Raises:
            ModelError: If the model mixes the rows of a batch; see `CheckedTape`.
        """
        device = device_of(model)
        with evaluating(model), engine(model, posterior.blocks) as tape:
            outputs = forward(model, move(inputs, device), positions=likelihood.positions)
            CheckedTape(tape, model, posterior.blocks).look(outputs)
            fixed = outputs.detach()
            needed = fewest_directions(likelihood, fixed, self.link)
            directions, complete = self.output_directions(likelihood, fixed, needed)
            metrics = (posterior.metrics(self.tolerance), unit_metrics(posterior))
            small, at_unit = projected_covariances(tape, metrics, outputs, directions)
        covariance = directions @ small.to(directions) @ directions.transpose(1, 2)
        prediction = predict_gaussian_outputs(likelihood, fixed, covariance, self.link)
        return replace(
            prediction,
            covariance=prediction.covariance if complete else None,
            novelty=novelty_of(at_unit, directions, needed),
        )

    def output_directions(
        self, likelihood: Likelihood, outputs: Tensor, needed: Tensor
    ) -> tuple[Tensor, bool]:
        """Orthonormal directions `(N, C, K)`, and whether they hold the whole covariance.

        Args:
            likelihood: Of the labels.
            outputs: `(N, C)`.
            needed: The directions that the link needs.
        """
        if not self.centred:
            identity = torch.eye(outputs.shape[-1], dtype=outputs.dtype, device=outputs.device)
            return identity.expand(len(outputs), -1, -1), True
        contrasts = contrast_directions(likelihood, outputs)
        if contrasts.shape[2] > self.max_passes and needed.shape[2] < contrasts.shape[2]:
            return needed, False
        return contrasts, True


def contrast_directions(likelihood: Likelihood, outputs: Tensor) -> Tensor:
    """The likelihood's contrasts for every row, `(N, C, K)`: all that a prediction can feel."""
    contrasts = likelihood.contrasts(outputs.shape[-1]).to(outputs)
    return contrasts.expand(len(outputs), -1, -1)


def fewest_directions(likelihood: Likelihood, outputs: Tensor, link: Link) -> Tensor:
    """The directions `(N, C, K)` that a link's probabilities depend on: one, or the contrasts."""
    one = link.direction(outputs) if isinstance(likelihood, Categorical) else None
    return contrast_directions(likelihood, outputs) if one is None else one.unsqueeze(-1)


@dataclass(frozen=True)
class CovarianceSum:
    """Covariance of the outputs along `K` directions, summed as gradients of blocks come in.

    Attributes:
        metrics: Of the blocks that count.
        total: `(N, K, K)`, so far.
        earlier: By block, the parts of gradients along the directions before.
    """

    metrics: Mapping[str, Metric]
    total: Tensor
    earlier: dict[str, list[tuple[Part, ...]]] = field(default_factory=dict)

    def add(self, k: int, block: Block, gradient: Tensor) -> None:
        """Add a block's gradients `(N, p, q)` along direction `k`."""
        if block.name not in self.metrics:
            return
        mine = self.metrics[block.name].parts(gradient)
        others = self.earlier.setdefault(block.name, [])
        for other, theirs in enumerate([*others, mine]):
            # With a device_map each block has its own device; what leaves it is small.
            product = inner(mine, theirs).to(self.total)
            self.total[:, k, other] += product
            if other < k:
                self.total[:, other, k] += product
        if k < self.total.shape[1] - 1:
            others.append(mine)


def projected_covariances(
    tape: Tape, metrics: Sequence[Mapping[str, Metric]], outputs: Tensor, directions: Tensor
) -> list[Tensor]:
    """Covariances of the outputs along `K` directions, from one look at the gradients.

    Args:
        tape: Of the forward pass that made `outputs`.
        metrics: For each covariance that of every block that counts.
        outputs: `(N, C)`.
        directions: `(N, C, K)`; one backward pass for each `k`.

    Returns:
        `(N, K, K)` for each of `metrics`.
    """
    n_rows, _, n_directions = directions.shape
    shape = n_rows, n_directions, n_directions
    sums = [CovarianceSum(given, outputs.new_zeros(shape)) for given in metrics]

    def add(k: int, block: Block, seen: Observation) -> None:
        gradient = seen.gradient()
        for one in sums:
            one.add(k, block, gradient)

    observe_directions(tape, outputs, directions, add)
    return [one.total for one in sums]


def observe_directions(
    tape: Tape, outputs: Tensor, directions: Tensor, see: Callable[[int, Block, Observation], None]
) -> None:
    """Call `see(k, block, observation)` for every direction `k` of `(N, C, K)`, one by one."""
    n_directions = directions.shape[2]
    for k in range(n_directions):
        tape.observe(outputs, directions[..., k], partial(see, k), retain=k < n_directions - 1)


def observe_coordinates(
    tape: Tape,
    blocks: Sequence[Block],
    bases: Mapping[str, Eigenbasis],
    outputs: Tensor,
    directions: Tensor,
    see: Callable[[int, slice, Tensor], None],
) -> None:
    """Call `see(k, place, coordinates)` for every direction and block, one by one.

    Args:
        tape: Of the forward pass that made `outputs`.
        blocks: All blocks, in the order of the weights.
        bases: Eigenbasis of each block.
        outputs: `(N, C)`.
        directions: `(N, C, K)`; one backward pass for each `k`.
        see: Gets a block's gradients `(N, p q)` in its eigenbasis, where the outputs are, and the
            place of its weights among those of all blocks.
    """
    ends = list(accumulate(block.size for block in blocks))
    place = {b.name: slice(end - b.size, end) for b, end in zip(blocks, ends, strict=True)}

    def project(k: int, block: Block, seen: Observation) -> None:
        coordinates = bases[block.name].project(seen.gradient()).flatten(1)
        see(k, place[block.name], coordinates.to(outputs))

    observe_directions(tape, outputs, directions, project)


def projected_jacobian(
    tape: Tape,
    blocks: Sequence[Block],
    bases: Mapping[str, Eigenbasis],
    outputs: Tensor,
    directions: Tensor,
) -> Tensor:
    """Gradients of `K` output directions at every weight, in the eigenbases of the blocks.

    Args:
        tape: Of the forward pass that made `outputs`.
        blocks: All blocks, in the order of the weights.
        bases: Eigenbasis of each block.
        outputs: `(N, C)`.
        directions: `(N, C, K)`; one backward pass for each `k`.

    Returns:
        `(N, K, P)` with `P` the number of weights of all blocks.
    """
    n_rows, _, n_directions = directions.shape
    jacobian = outputs.new_empty(n_rows, n_directions, sum(block.size for block in blocks))

    def write(k: int, place: slice, coordinates: Tensor) -> None:
        jacobian[:, k, place] = coordinates

    observe_coordinates(tape, blocks, bases, outputs, directions, write)
    return jacobian
