"""Gradients of the labels' log-odds, row by row, short enough to keep for many rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from posthoc_bhpeft.batches import device_of
from posthoc_bhpeft.blocks import Block, Engine, observing
from posthoc_bhpeft.likelihood import Bernoulli, Likelihood
from posthoc_bhpeft.linalg import CountSketch, Eigenbasis
from posthoc_bhpeft.predictive.linearized import projected_jacobian
from posthoc_bhpeft.predictive.spectrum import EigenvalueBins, labelled_batches

SKETCH_SIZE = 16384


@dataclass(frozen=True)
class LabelGradients:
    """Gradients `g` of label log-odds in the weights, for `R` answers.

    An answer is a row's label, or each yes-or-no answer of a row.

    Attributes:
        outputs: `(N, C)` at the trained weights.
        labels: `(N, ...)`.
        sketches: `(R, k)`, whose inner products are those of the gradients.
        centres: `(B,)` eigenvalue of the curvature that stands for a bin.
        energies: `(B, R)`, the part of `|g|^2` within a bin.
    """

    outputs: Tensor
    labels: Tensor
    sketches: Tensor
    centres: Tensor
    energies: Tensor

    @classmethod
    def joined(cls, parts: Sequence[LabelGradients]) -> LabelGradients:
        """All batches in one."""
        return cls(
            torch.cat([part.outputs for part in parts]),
            torch.cat([part.labels for part in parts]),
            torch.cat([part.sketches for part in parts]),
            parts[0].centres,
            torch.cat([part.energies for part in parts], 1),
        )

    def variance(self, precision: float) -> Tensor:
        """Variance `(R,)` of the log-odds under the posterior at a prior precision, float64."""
        return (1 / (self.centres.double() + precision)) @ self.energies.double()


def label_log_odds(
    likelihood: Likelihood, outputs: Tensor, labels: Tensor, temperature: float = 1.0
) -> Tensor:
    """`L = log p - log(1 - p)` of the labels' probabilities `p` at a temperature, `(R,)`, float64.

    Args:
        likelihood: `Categorical()`, or `Bernoulli()`, whose answers count one by one.
        outputs: `(N, C)`.
        labels: `(N,)`, or `(N, C)` answers.
        temperature: Divides the outputs.
    """
    scaled = outputs.double() / temperature
    if isinstance(likelihood, Bernoulli):
        return (scaled * answer_signs(outputs, labels)).flatten()
    log_p = scaled.log_softmax(-1).gather(1, labels.long()[:, None]).squeeze(1)
    # Above this a probability is 1 in double precision, and its log-odds infinite.
    log_p = log_p.clamp_max(-1e-12)
    return log_p - torch.log(-torch.expm1(log_p))


def label_directions(likelihood: Likelihood, outputs: Tensor, labels: Tensor) -> Tensor:
    """Gradient of the label log-odds in the outputs, `(N, C, A)` for `A` answers a row.

    For a class `y` it is `e_y - w`, `w` the other classes' probabilities, normalised.
    """
    if isinstance(likelihood, Bernoulli):
        return torch.diag_embed(answer_signs(outputs, labels))
    true = labels.long()[:, None]
    others = outputs.scatter(-1, true, -torch.inf).softmax(-1)
    return (-others).scatter(-1, true, 1.0).unsqueeze(-1)


def answer_signs(outputs: Tensor, labels: Tensor) -> Tensor:
    """`(N, C)`: 1 where the answer is yes, -1 where it is no."""
    return torch.where(labels.reshape(outputs.shape) > 0.5, 1.0, -1.0).to(outputs)


def label_gradients(
    model: nn.Module,
    blocks: Sequence[Block],
    bases: Mapping[str, Eigenbasis],
    likelihood: Likelihood,
    batches: Iterable[Any],
    *,
    sketch_size: int = SKETCH_SIZE,
    engine: Engine = observing,
) -> Iterator[LabelGradients]:
    """Gradients of the labelled rows of each batch; as many backward passes as answers a row.

    Args:
        model: At the posterior's mean; unchanged.
        blocks: From `discover`.
        bases: Eigenbasis of each block's curvature.
        likelihood: `Categorical()` or `Bernoulli()`.
        batches: Labelled batches.
        sketch_size: Numbers kept a gradient; exact where the model has no more trained weights.
        engine: Makes the tape.

    Yields:
        The gradients of one batch that has a labelled row.

    Raises:
        DataError: If a batch has no labels.
    """
    bins = EigenvalueBins.over(bases)
    device = device_of(model)
    member = bins.members(blocks, bases).to(device)
    # A stream of its own: the sketch must not depend on what was drawn before.
    sketch = CountSketch.make(len(member), sketch_size, torch.Generator().manual_seed(0)).to(device)
    for one in labelled_batches(model, blocks, likelihood, batches, engine):
        keep, fixed = one.keep, one.outputs.detach()
        if not bool(keep.any()):
            continue
        # A row without a label gets some direction; it is dropped below.
        directions = label_directions(likelihood, fixed, one.labels.clamp_min(0))
        jacobian = projected_jacobian(one.tape, blocks, bases, one.outputs, directions)[keep]
        rows = jacobian.flatten(0, 1)
        energies = rows.new_zeros(len(bins.centres), len(rows))
        energies.index_add_(0, member, rows.square().T)
        # What follows is small and needs float64, which not every device has.
        kept = fixed[keep].cpu(), one.labels[keep].cpu()
        yield LabelGradients(*kept, sketch(rows).cpu(), bins.centres, energies.cpu())
