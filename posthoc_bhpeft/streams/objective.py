"""The loss of a training on rows of several rounds, each with its own choice of outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Distill = Callable[[Tensor, Tensor, tuple[int, ...]], Tensor]
"""`distill(logits (N, C), teacher (N, C'), targets of the N rows)`, a mean over the rows."""


@dataclass(frozen=True)
class Objective:
    """Cross entropy of each row among the outputs of its round, plus distillation if asked for.

        loss = -log softmax(f_n[columns of n's round])_{y_n} + distill(f, teacher, y)

    Batches carry the number of a row in place of its label, and everything known about the row is
    looked up here. So batches stay what every model and Trainer expects, one integer a row.

    Attributes:
        targets: output of each of R rows' labels, (R,).
        groups: which line of `allowed` is a row's, (R,).
        allowed: outputs to choose among, (G, C), bool.
        teacher: logits of another model for the first rows, (R', C'), R' <= R and C' <= C; None
            without distillation.
        distill: made of logits and the teacher's; None without distillation.
    """

    targets: Tensor
    groups: Tensor
    allowed: Tensor
    teacher: Tensor | None = None
    distill: Distill | None = None

    def loss(self, outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        """The share of one batch in the mean over the batches accumulated, as `Trainer` calls it.

        Args:
            outputs: of the model.
            labels: numbers of N rows, (N,).
            num_items_in_batch: rows in all batches accumulated; None if there is but this one.
        """
        rows, logits = labels.cpu(), _full_precision(outputs)
        total = self.cross_entropy(logits, rows).sum()
        # The teacher was asked about training rows alone, and validation rows come after them.
        if self.distill and self.teacher is not None and int(rows.max()) < len(self.teacher):
            targets = tuple(self.targets[rows].tolist())
            teacher = self.teacher[rows].to(logits)
            total = total + len(rows) * self.distill(logits, teacher, targets)
        return total / (len(rows) if num_items_in_batch is None else num_items_in_batch)

    def cross_entropy(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Of each row among the outputs of its round, (N,); `rows` (N,) on the CPU."""
        restricted = self._restricted(logits, rows)
        targets = self.targets[rows].to(logits.device)
        return functional.cross_entropy(restricted, targets, reduction="none")

    def metrics(self, prediction: Any) -> dict[str, float]:
        """NLL and accuracy of validation rows, as `Trainer` calls it."""
        rows = torch.as_tensor(prediction.label_ids).long()
        logits = torch.as_tensor(prediction.predictions).double()
        right = self._restricted(logits, rows).argmax(1) == self.targets[rows]
        return {
            "nll": float(self.cross_entropy(logits, rows).mean()),
            "accuracy": float(right.double().mean()),
        }

    def _restricted(self, logits: Tensor, rows: Tensor) -> Tensor:
        allowed = self.allowed[self.groups[rows]].to(logits.device)
        return logits.masked_fill(~allowed, -torch.inf)


def _full_precision(outputs: Any) -> Tensor:
    logits: Tensor = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
