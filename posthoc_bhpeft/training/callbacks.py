"""What watches the Trainer: the weights of the best epoch, and the progress bar."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

if TYPE_CHECKING:
    from rich.progress import Progress
    from torch import Tensor, nn

_FIGURES = {
    "eval_nll": "validation NLL",
    "eval_accuracy": "accuracy",
    "eval_f1": "F1",
    "eval_rmse": "RMSE",
}
"""Figures of the validation rows, by the names that the Trainer gives them; for people."""

# Parts of the loss that `PenalizedTrainer` logs.
_PARTS = ("loss_data", "loss_penalty")


class BestWeights(TrainerCallback):  # type: ignore[misc]
    """Keeps the trained weights of the epoch with the lowest validation NLL, in memory.

    The Trainer can only do this through full checkpoints on disk. The trained part of a PEFT model
    is small, so a copy is cheaper and leaves nothing behind.

    Attributes:
        history: the figures of every epoch.
        best_epoch: the epoch whose weights are kept, counted from 1; 0 before the first.
    """

    def __init__(self, model: nn.Module, patience: int) -> None:
        self.history: list[dict[str, float]] = []
        self.best_epoch = 0
        self._model, self._patience = model, patience
        self._weights: dict[str, Tensor] = {}
        self._losses: dict[str, float] = {"train_loss": float("nan")}

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Remember the mean training loss of the epoch, which comes before its evaluation."""
        if "loss" in (logs or {}):
            self._losses = _losses(logs)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any, **_: Any) -> None:
        """Compare the epoch with the best one and decide whether to go on."""
        figures = {
            name.removeprefix("eval_"): float(value)
            for name, value in metrics.items()
            if name in _FIGURES
        }
        self.history.append({**self._losses, **figures})
        epoch = len(self.history)
        best = self.history[self.best_epoch - 1]["nll"] if self.best_epoch else math.nan
        # A NaN is better than nothing, and worse than any number.
        if not self.best_epoch or is_better(figures["nll"], best):
            self.best_epoch = epoch
            self._weights = {
                name: parameter.detach().clone()
                for name, parameter in self._model.named_parameters()
                if parameter.requires_grad
            }
        if self._patience and epoch - self.best_epoch >= self._patience:
            control.should_training_stop = True

    def keep_last(self, logs: Sequence[Mapping[str, float]]) -> None:
        """Take the history from the Trainer's logs: without validation the last epoch is kept."""
        self.history = [_losses(row) for row in logs if "loss" in row]
        self.best_epoch = len(self.history)

    def restore(self) -> None:
        """Put the weights of the best epoch back into the model."""
        for name, parameter in self._model.named_parameters():
            if name in self._weights:
                parameter.data.copy_(self._weights[name])


class ProgressBar(TrainerCallback):  # type: ignore[misc]
    """One bar over all steps, and a line for each epoch; on standard error."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._epochs = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Show the bar."""
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} steps, loss {task.fields[loss]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._bar.start()
        self._bar.add_task("training", total=state.max_steps, loss="-")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Show the loss."""
        if self._bar is not None and "loss" in (logs or {}):
            self._bar.update(self._bar.task_ids[0], loss=f"{float(logs['loss']):.3f}")

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any, **_: Any) -> None:
        """Write a line for the epoch."""
        self._epochs += 1
        if self._bar is None:
            return
        figures = [f"{text} {metrics[key]:.4f}" for key, text in _FIGURES.items() if key in metrics]
        self._bar.console.print(f"epoch {self._epochs}: {', '.join(figures)}", highlight=False)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take the bar down."""
        self.close()

    def close(self) -> None:
        """Take the bar down, also after an error."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def is_better(nll: float, best: float) -> bool:
    """Whether an epoch's NLL is below the best so far; any number is below a NaN."""
    return nll < best or (math.isnan(best) and not math.isnan(nll))


def _losses(logs: Mapping[str, float]) -> dict[str, float]:
    """The mean training loss since the last log, and its parts where it has two."""
    parts = {name: float(logs[name]) for name in _PARTS if name in logs}
    return {"train_loss": float(logs["loss"]), **parts}
