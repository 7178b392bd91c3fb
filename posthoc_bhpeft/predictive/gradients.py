"""Gradients of the labels' log-odds, row by row, short enough to keep for many rows."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from posthoc_bhpeft.batches import device_of
from posthoc_bhpeft.blocks import Block, Engine, observing
from posthoc_bhpeft.likelihood import Bernoulli, Likelihood
from posthoc_bhpeft.linalg import CountSketch, Eigenbasis
from posthoc_bhpeft.predictive.energies import EigenvalueBins, EnergySum
from posthoc_bhpeft.predictive.joined import Joined
from posthoc_bhpeft.predictive.linearized import observe_coordinates
from posthoc_bhpeft.predictive.positions import some_positions
from posthoc_bhpeft.predictive.spectrum import LabelledBatch, labelled_batches

SKETCH_SIZE = 16384


@dataclass(frozen=True)
class LabelGradients:
    """Gradients `g` of label log-odds in the weights, for `R` answers.

    An answer is a row's label, or one of a row's yes-or-no answers.

    Attributes:
        outputs: `(N, C)` at the trained weights.
        labels: `(N, ...)`.
        sketches: `(R, k)`, whose inner products are those of the gradients.
        centres: `(B,)` eigenvalue of the curvature that stands for a bin.
        energies: `(B, R)`, the part of `|g|^2` within a bin.
        chosen: `(N, A)`, which yes-or-no answers of a row these are; `None` where they are all.
    """

    outputs: Tensor
    labels: Tensor
    sketches: Tensor
    centres: Tensor
    energies: Tensor
    chosen: Tensor | None = None

    @classmethod
    def joined(cls, parts: Iterable[LabelGradients], expected: int) -> LabelGradients | None:
        """All batches in one, `None` if there is none; each may be given up once it is here.

        Args:
            parts: One or more.
            expected: About how many answers there will be.
        """
        columns = {name: Joined(expected) for name in ("outputs", "labels", "sketches")}
        energies, chosen, centres = Joined(expected), Joined(expected), None
        for part in parts:
            for name, column in columns.items():
                column.add(getattr(part, name))
            energies.add(part.energies.T)
            if part.chosen is not None:
                chosen.add(part.chosen)
            centres = part.centres
        if centres is None:
            return None
        found = {name: column.tensor() for name, column in columns.items()}
        picked = chosen.tensor() if chosen.count else None
        return cls(**found, centres=centres, energies=energies.tensor().T, chosen=picked)

    def variance(self, precision: float) -> Tensor:
        """Variance `(R,)` of the log-odds under the posterior at a prior precision, float64."""
        return (1 / (self.centres.double() + precision)) @ self.energies.double()

    def log_odds(self, likelihood: Likelihood, temperature: float = 1.0) -> Tensor:
        """`L` of these answers at a temperature, `(R,)`, float64."""
        every = label_log_odds(likelihood, self.outputs, self.labels, temperature)
        if self.chosen is None:
            return every
        return every.reshape(self.outputs.shape).gather(1, self.chosen).flatten()


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
    true = labels.long()[:, None]
    # By way of `log p` the log-odds of what is nearly certain would be lost.
    others = scaled.scatter(-1, true, -torch.inf).logsumexp(-1)
    return scaled.gather(1, true).squeeze(1) - others


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
    n_answers: int | None = None,
    sketch_size: int = SKETCH_SIZE,
    engine: Engine = observing,
) -> Generator[LabelGradients]:
    """Gradients of the labelled rows of each batch; as many backward passes as answers a row.

    No gradient of all weights is ever there: what a block adds is sketched as it comes.

    Args:
        model: At the posterior's mean; unchanged.
        blocks: From `discover`.
        bases: Eigenbasis of each block's curvature.
        likelihood: `Categorical()` or `Bernoulli()`.
        batches: Labelled batches.
        n_answers: Of a row's yes-or-no answers so many, drawn for each row; `None` for all.
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
    # Streams of their own: they must not depend on what was drawn before.
    drawn, signs = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    sketch = CountSketch.make(len(member), sketch_size, signs).to(device)
    with closing(labelled_batches(model, blocks, likelihood, batches, engine)) as seen:
        for one in seen:
            keep, fixed = one.keep, one.outputs.detach()
            if not bool(keep.any()):
                continue
            # A row without a label gets some direction; it is dropped below.
            directions, chosen = label_directions(likelihood, fixed, one.labels.clamp_min(0)), None
            if n_answers is not None and n_answers < directions.shape[2]:
                every = torch.ones_like(fixed, dtype=torch.bool)
                chosen, _ = some_positions(every, n_answers, drawn)
                directions = directions.gather(2, chosen[:, None].expand(-1, fixed.shape[1], -1))
            sketches, energies = sketched(
                one, blocks, bases, directions, sketch, member, len(bins.centres)
            )
            # What follows is small and needs float64, which not every device has.
            yield LabelGradients(
                fixed[keep].cpu(),
                one.labels[keep].cpu(),
                sketches[keep].flatten(0, 1).cpu(),
                bins.centres,
                energies[:, keep].flatten(1).cpu(),
                None if chosen is None else chosen[keep].cpu(),
            )


def sketched(
    batch: LabelledBatch,
    blocks: Sequence[Block],
    bases: Mapping[str, Eigenbasis],
    directions: Tensor,
    sketch: CountSketch,
    member: Tensor,
    n_bins: int,
) -> tuple[Tensor, Tensor]:
    """Sketches `(N, A, k)` and energies `(B, N, A)` of gradients along directions `(N, C, A)`."""
    outputs, (n_rows, _, n_answers) = batch.outputs, directions.shape
    sketches = outputs.new_zeros(n_answers, n_rows, sketch.size)
    energies = EnergySum.empty(member, n_bins, outputs, n_answers, n_directions=1)

    def add(answer: int, place: slice, coordinates: Tensor) -> None:
        sketch.add(sketches[answer], coordinates, place)
        energies.add(answer, place, coordinates)

    observe_coordinates(batch.tape, blocks, bases, outputs, directions, add)
    each = energies.total().reshape(n_bins, n_rows, n_answers)
    return sketches.transpose(0, 1), each
