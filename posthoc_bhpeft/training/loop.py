"""The one way this package runs transformers' Trainer: quiet, and nothing is left behind."""

from __future__ import annotations

import math
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from posthoc_bhpeft.batches import differentiable
from posthoc_bhpeft.errors import ConfigError, NonFiniteError
from posthoc_bhpeft.training.settings import TrainingSettings

if TYPE_CHECKING:
    from torch.utils.data import Dataset

    from posthoc_bhpeft.training.callbacks import BestWeights
    from posthoc_bhpeft.training.penalized import Penalty

# What accelerate puts on a model and leaves there: a forward pass wrapped in autocast, and the
# mark that it has done so, by which it would pass the model over in the next training.
_PATCHED = ("forward", "_original_forward", "_is_accelerate_prepared")


@dataclass(frozen=True)
class Task:
    """What is trained on, and what for.

    Attributes:
        train: N rows.
        validation: rows that decide which epoch is kept, or None to keep the last.
        collate: makes a batch of rows.
        metrics: figures of the validation rows, "nll" among them, as `Trainer` calls it.
        loss: `loss(outputs, labels, num_items_in_batch)`; None takes the model's own.
        penalty: a second term of the loss.
    """

    train: Dataset[Any]
    validation: Dataset[Any] | None
    collate: Callable[[list[Any]], dict[str, Any]]
    metrics: Callable[[Any], dict[str, float]]
    loss: Callable[..., torch.Tensor] | None = None
    penalty: Penalty | None = None


def run_trainer(
    model: nn.Module,
    task: Task,
    settings: TrainingSettings,
    *,
    progress: bool = False,
    device: str | None = None,
) -> BestWeights:
    """Train in place, from the weights as they are, and leave those of the best epoch.

    Args:
        model: trained where it requires gradients; in eval mode afterwards.
        task: rows and loss.
        settings: how to train; the seed is to be set by the caller, see `seeded`.
        progress: show a bar on standard error.
        device: "cpu" to leave an accelerator alone.

    Returns:
        Figures of every epoch.

    Raises:
        NonFiniteError: the training broke down (NaN or infinite weights).
    """
    from transformers import PrinterCallback, ProgressCallback

    from posthoc_bhpeft.training.callbacks import BestWeights, ProgressBar

    best, bar = BestWeights(model, settings.patience), ProgressBar()
    with tempfile.TemporaryDirectory(prefix="bhpeft-") as scratch, _own_forward(model):
        trainer = _trainer_class(task)(
            model=model,
            args=_arguments(settings, scratch, task, device),
            train_dataset=task.train,
            eval_dataset=task.validation,
            data_collator=task.collate,
            compute_loss_func=task.loss,
            compute_metrics=task.metrics,
            preprocess_logits_for_metrics=lambda logits, labels: first(logits),
            callbacks=[best, *([bar] if progress else [])],
        )
        # Their lines go to standard output, which belongs to results.
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        try:
            with differentiable(model):
                trainer.train()
        finally:
            bar.close()
    if task.validation is None:
        best.keep_last(trainer.state.log_history)
    best.restore()
    _check_finite(model)
    model.eval()
    return best


def first(values: Any) -> Any:
    """The logits, where a model returns hidden states beside them."""
    return values[0] if isinstance(values, tuple) else values


def check_device(device: str | None, settings: TrainingSettings) -> None:
    """Raise unless training is possible there.

    Raises:
        ConfigError: there is no such device, or it cannot train in float16.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    known = ("cpu", *([accelerator.type] if accelerator else []))
    if device is not None and device not in known:
        raise ConfigError(
            f"Training on {device!r} is not possible here. Supported: {', '.join(known)}; to "
            "choose one of several cards, set CUDA_VISIBLE_DEVICES."
        )
    if settings.mixed_precision == "fp16" and (device == "cpu" or accelerator is None):
        raise ConfigError(
            "mixed_precision is 'fp16', which needs an accelerator. Supported on a CPU: 'no' and "
            "'bf16'."
        )


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed every generator that Trainer and weight initialisation use, and put them back."""
    from transformers import set_seed

    kept = random.getstate(), np.random.get_state()  # noqa: NPY002 - saved, not drawn from
    with torch.random.fork_rng():
        try:
            set_seed(seed)
            yield
        finally:
            random.setstate(kept[0])
            np.random.set_state(kept[1])  # noqa: NPY002


def _trainer_class(task: Task) -> Callable[..., Any]:
    from transformers import Trainer

    if task.penalty is None:
        return Trainer  # type: ignore[no-any-return]
    from posthoc_bhpeft.training.penalized import PenalizedTrainer

    return partial(PenalizedTrainer, penalty=task.penalty, n_rows=_length(task.train))


def _arguments(settings: TrainingSettings, folder: str, task: Task, device: str | None) -> Any:
    from transformers import TrainingArguments

    steps = math.ceil(_length(task.train) / settings.batch_size) * settings.epochs
    on_cpu = device == "cpu" or not torch.accelerator.is_available()
    return TrainingArguments(
        output_dir=folder,
        num_train_epochs=settings.epochs,
        learning_rate=settings.peak_learning_rate,
        weight_decay=settings.weight_decay,
        warmup_steps=round(settings.warmup * steps),
        lr_scheduler_type="linear",
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=2 * settings.batch_size,
        eval_strategy="no" if task.validation is None else "epoch",
        logging_strategy="epoch",
        save_strategy="no",
        report_to="none",
        label_names=["labels"],
        remove_unused_columns=False,
        disable_tqdm=True,
        dataloader_pin_memory=not on_cpu and torch.cuda.is_available(),
        use_cpu=on_cpu,
        bf16=settings.mixed_precision == "bf16",
        fp16=settings.mixed_precision == "fp16",
        seed=settings.seed,
    )


def _length(rows: Any) -> int:
    return len(rows)


@contextmanager
def _own_forward(model: nn.Module) -> Iterator[None]:
    """Give the model its own forward pass back after a training."""
    kept = {name: vars(model)[name] for name in _PATCHED if name in vars(model)}
    try:
        yield
    finally:
        for name in _PATCHED:
            vars(model).pop(name, None)
        vars(model).update(kept)


def _check_finite(model: nn.Module) -> None:
    broken = [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not bool(torch.isfinite(parameter).all())
    ]
    if broken:
        raise NonFiniteError(
            f"Training broke down: {len(broken)} tensors hold NaN or infinity (first: "
            f"{broken[0]!r}). Lower the learning rate, or use dtype float32."
        )
