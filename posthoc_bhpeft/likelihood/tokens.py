r"""A class at every position of a text.

A model gives logits `(N, T, C)`, labels are `(N, T)`, and -100 marks positions that do not count.
The row is the text, so its `nll` is a sum over positions, and with `J_nt (C, P)` the Jacobian at
one of them its GGN is

    H_n = sum_t J_nt^T (diag(p_nt) - p_nt p_nt^T) J_nt.

`v_nt = S_nt eps_nt`, with random signs independent over positions, gives in one backward pass the
gradient `g_n = sum_t J_nt^T v_nt`, and `E[g_n g_n^T] = H_n`: terms between two positions vanish in
the mean. Exact directions need a pass for every position.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from posthoc_bhpeft.batches import IGNORED
from posthoc_bhpeft.errors import ConfigError, DataError
from posthoc_bhpeft.likelihood.categorical import Categorical
from posthoc_bhpeft.likelihood.labels import check_class_labels
from posthoc_bhpeft.likelihood.likelihood import Likelihood

MOST_PASSES = 256
"""Backward passes a batch that exact directions may take: enough to judge random ones by."""


@dataclass(frozen=True)
class Tokens(Likelihood):
    """A softmax at every labelled position: `nll_n = -sum_t log softmax(f_nt)_y_nt`.

    For token classification and encoder-decoders: `Tokens()`. For a causal language model, whose
    labels are its own input ids: `Tokens(shift=True)`.

    Args:
        shift: The output at position `t` is judged by the label at `t + 1`.
    """

    shift: bool = False

    @property
    def positions(self) -> bool:
        return True

    def aligned(self, labels: Tensor) -> Tensor:
        return F.pad(labels[:, 1:], (0, 1), value=IGNORED) if self.shift else labels

    def check_labels(self, outputs: Tensor, labels: Tensor) -> None:
        if labels.shape != outputs.shape[:2]:
            raise DataError(
                f"Tokens() needs one label a position: outputs have shape {tuple(outputs.shape)}, "
                f"labels {tuple(labels.shape)}. Pad labels with {IGNORED} to the length of the "
                "inputs, as DataCollatorForTokenClassification, DataCollatorForLanguageModeling "
                "(mlm=False) and DataCollatorForSeq2Seq do. Prompt tuning, whose outputs are "
                "longer than its inputs, is not supported here."
            )
        if labels.is_floating_point():
            check_class_labels(labels, outputs.shape[-1])
        self.check_range(labels, outputs.shape[-1])

    @staticmethod
    def check_range(labels: Tensor, n_classes: int) -> None:
        """Raise `DataError` unless every label `(N, T)` is -100 or in `0 .. n_classes - 1`."""
        wrong = (labels != IGNORED) & ((labels < 0) | (labels >= n_classes))
        if bool(wrong.any()):
            row, position = wrong.nonzero()[0].tolist()
            raise DataError(
                f"Label {int(labels[row, position])} at position {position} of row {row} of the "
                f"batch is out of range: the model has {n_classes} outputs a position, so labels "
                f"must be 0 to {n_classes - 1}. Load the model with the right num_labels, or mark "
                f"the position with {IGNORED}."
            )

    def nll(self, outputs: Tensor, labels: Tensor) -> Tensor:
        targets = self.aligned(labels).long()
        each = F.cross_entropy(
            outputs.transpose(1, 2), targets, ignore_index=IGNORED, reduction="none"
        )
        return each.sum(1)

    def output_gradient(self, outputs: Tensor, labels: Tensor) -> Tensor:
        counted = self.counted(labels)
        gradient = torch.zeros_like(outputs)
        own = self.aligned(labels)[counted]
        gradient[counted] = Categorical().output_gradient(outputs[counted], own)
        return gradient

    def rank(self, n_outputs: int) -> float:
        return math.inf

    def root(self, outputs: Tensor, labels: Tensor, *, reduced: bool) -> Tensor:
        counted = self.counted(labels)
        n_longest = int(counted.sum(1).max())
        self.check_passes(n_longest, outputs.shape[-1])
        columns = Categorical().root(outputs[counted], labels, reduced=reduced)
        # Texts do not meet in a gradient, so one pass serves a position of each of them.
        turn = counted.cumsum(1)[counted] - 1
        directions = outputs.new_zeros(n_longest, len(columns), *outputs.shape)
        for index in range(n_longest):
            mine = torch.where((turn == index)[:, None], columns, 0)
            directions[index, :, counted] = mine
        return directions.flatten(0, 1)

    def signed_root(
        self, outputs: Tensor, labels: Tensor, samples: int, generator: torch.Generator | None
    ) -> Tensor:
        counted = self.counted(labels)
        directions = outputs.new_zeros(samples, *outputs.shape)
        directions[:, counted] = Categorical().signed_root(
            outputs[counted], labels, samples, generator
        )
        return directions

    def contrasts(self, n_outputs: int) -> Tensor:
        raise ConfigError(
            "The covariance of all outputs of a text would take a backward pass for each class at "
            "each position, so Linearized() and HeldOut() are not for Tokens(). Leave predictive= "
            "and prior= out, or pass Tangent() or Sampled(), and VisiblePrecision(), "
            "MarginalLikelihood() or FixedPrecision(value)."
        )

    def counted(self, labels: Tensor) -> Tensor:
        """Mask `(N, T)` of the outputs that a label judges."""
        return self.aligned(labels) != IGNORED

    @staticmethod
    def check_passes(n_positions: int, n_classes: int) -> None:
        """Raise if exact directions would take too long.

        Raises:
            ConfigError: With the number of backward passes.
        """
        passes = n_positions * (n_classes - 1)
        if passes > MOST_PASSES:
            raise ConfigError(
                f"Exact directions would take {passes:,} backward passes for one batch: "
                f"{n_positions} labelled positions times {n_classes - 1} contrasts, and at most "
                f"{MOST_PASSES} are taken. Use RandomSigns(samples=2): two passes, and the same "
                "curvature on average."
            )
