"""Training against a penalty: transformers' Trainer whose loss has a second term."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import Trainer

from posthoc_bhpeft.errors import ConfigError


class Penalty(Protocol):
    """A second term of the loss, such as minus the log density of a prior over the weights."""

    def penalty(self, model: nn.Module) -> Tensor:
        """A differentiable scalar, in nats over the whole data (not a row)."""
        ...


class PenalizedTrainer(Trainer):  # type: ignore[misc]
    """A `Trainer` that minimises `data loss + weight * penalty(model) / n_rows`.

    The data loss is a mean over rows, so the penalty is divided by their number: then the sum of
    both, times `n_rows`, is minus the log posterior. The penalty enters once for each step of the
    optimizer however many batches are accumulated, in full precision under mixed precision, and
    not at all in evaluation. `loss` in the logs is the sum; `loss_data` and `loss_penalty` are its
    parts, means over the steps since the last log.

    Args:
        args: of `Trainer`.
        penalty: the second term; it is given the model without any wrapping.
        n_rows: rows of the training data that the posterior is about.
        weight: of the penalty.
        kwargs: of `Trainer`.

    Raises:
        ConfigError: `n_rows` or `weight` is out of range, or the weights are spread over processes.
    """

    def __init__(
        self, *args: Any, penalty: Penalty, n_rows: int, weight: float = 1.0, **kwargs: Any
    ) -> None:
        if n_rows < 1 or not weight >= 0.0:
            raise ConfigError(
                f"n_rows is {n_rows} and weight {weight}: a penalty is divided by the number of "
                "training rows, 1 or more, and its weight is 0 or more."
            )
        super().__init__(*args, **kwargs)
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            raise ConfigError(
                "DeepSpeed and FSDP spread the weights over processes, and a penalty needs them "
                "whole. Supported: one device, and DistributedDataParallel."
            )
        if self.compute_loss_func is None:
            # Sequence classifiers take any keyword but return the mean over their batch all the
            # same; believed, Trainer would sum these means over the accumulated batches, and the
            # data would outweigh the penalty by their number.
            self.model_accepts_loss_kwargs = False
        self._penalty, self._factor = penalty, weight / n_rows
        self._sum, self._steps = torch.zeros((), device=self.args.device), 0

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Gradients of one batch and, with the last batch of a step, of the penalty."""
        # The penalty goes first: DistributedDataParallel then only sees gradients summed already.
        share = self._penalize() if self.accelerator.sync_gradients else None
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        return loss if share is None else loss + share.to(loss)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Write the two parts of the loss beside it."""
        if "loss" in logs and self._steps:
            penalty = float(self._sum) / self._steps
            logs = {**logs, "loss_data": logs["loss"] - penalty, "loss_penalty": penalty}
            self._sum, self._steps = torch.zeros_like(self._sum), 0
        super().log(logs, start_time)

    def _penalize(self) -> Tensor:
        """Add the gradients of `weight * penalty / n_rows`; returns that share, detached.

        In a backward pass of its own, so that no scaling Trainer gives to the data loss touches it.
        """
        with torch.autocast(self.args.device.type, enabled=False):
            share = self._factor * self._penalty.penalty(self.model)
        if share.requires_grad:
            self.accelerator.backward(share * self.accelerator.gradient_accumulation_steps)
        self._sum, self._steps = self._sum + share.detach(), self._steps + 1
        return share.detach()
