"""Training an adapter on rows of text, through transformers' Trainer."""

from __future__ import annotations

import math
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from posthoc_bhpeft.checkpoints import load_base, load_tokenizer, resolve_model, whole_folder
from posthoc_bhpeft.data import RowSettings, TextData, encode
from posthoc_bhpeft.errors import ConfigError, DataError, NonFiniteError
from posthoc_bhpeft.training.record import TrainingRecord
from posthoc_bhpeft.training.settings import TrainingSettings

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedTokenizerBase

    from posthoc_bhpeft.training.callbacks import BestWeights


@dataclass(frozen=True)
class TrainingResult:
    """A trained model in eval mode, its tokenizer, and the record of the run."""

    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    record: TrainingRecord

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write adapter, tokenizer and training.json: all of them or, on an error, nothing.

        Raises:
            ConfigError: the folder holds something and may not be replaced.
        """
        with whole_folder(folder, overwrite=overwrite) as fresh:
            self.model.save_pretrained(str(fresh))
            self.tokenizer.save_pretrained(str(fresh))
            self.record.write(fresh)
        return Path(folder)


def train(
    model: str,
    data: TextData,
    *,
    validation: TextData | None = None,
    settings: TrainingSettings | None = None,
    peft_config: PeftConfig | None = None,
    rows: RowSettings | None = None,
    progress: bool = True,
    device: str | None = None,
) -> TrainingResult:
    """Tune a base model on labelled rows: adapter, LoRA and prefix together, or one of them.

    With validation rows, training stops when their negative log-likelihood (NLL) no longer falls,
    and the weights of the best epoch are kept. The random state of the process is left as it was.

    Args:
        model: "minilm", the folder of a base model, or a hub name.
        data: N labelled training rows.
        validation: labelled rows that decide when to stop, or None to go through all epochs.
        settings: how to train; None takes the defaults.
        peft_config: any peft configuration in place of the one that `settings` describe.
        rows: where the rows came from, to be recorded so that `bhpeft fit` finds them again.
        progress: show a progress bar on standard error.
        device: "cpu" to leave an accelerator alone; None uses one if there is one.

    Raises:
        DataError: rows without labels.
        CheckpointError: the base model is not found.
        ConfigError: another device than these is asked for.
        NonFiniteError: the training broke down (NaN or infinite weights).
    """
    settings = settings or TrainingSettings()
    if data.labels is None or (validation is not None and validation.labels is None):
        raise DataError("Training needs rows with labels.")
    _check_device(device)
    started = time.perf_counter()
    with _seeded(settings.seed):
        tuned, tokenizer = _build(model, data, settings, peft_config)
        best = _fit(tuned, tokenizer, data, validation, settings, progress, device)
    _check_finite(tuned)
    record = TrainingRecord(
        model=model,
        settings=settings,
        label_names=data.label_names,
        rows=rows,
        train_rows=len(data),
        train_digest=data.digest,
        validation_rows=0 if validation is None else len(validation),
        best_epoch=best.best_epoch,
        history=tuple(best.history),
        seconds=round(time.perf_counter() - started, 1),
    )
    return TrainingResult(tuned.eval(), tokenizer, record)


def _build(
    model: str, data: TextData, settings: TrainingSettings, peft_config: PeftConfig | None
) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    from peft import get_peft_model

    base = resolve_model(model)
    tokenizer = load_tokenizer(base)
    plain = load_base(base, label_names=data.label_names, tokenizer=tokenizer, dtype=settings.dtype)
    return get_peft_model(plain, peft_config or settings.peft_config()), tokenizer


def _fit(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    data: TextData,
    validation: TextData | None,
    settings: TrainingSettings,
    progress: bool,
    device: str | None,
) -> BestWeights:
    from transformers import DataCollatorWithPadding, PrinterCallback, ProgressCallback, Trainer

    from posthoc_bhpeft.training.callbacks import BestWeights, ProgressBar

    best, bar = BestWeights(model, settings.patience), ProgressBar()
    with tempfile.TemporaryDirectory(prefix="bhpeft-") as scratch:
        trainer = Trainer(
            model=model,
            args=_arguments(settings, scratch, len(data), validation is not None, device),
            train_dataset=encode(data, tokenizer, max_length=settings.max_length),
            eval_dataset=None
            if validation is None
            else encode(validation, tokenizer, max_length=settings.max_length),
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=_regression_metrics if data.regression else _class_metrics,
            preprocess_logits_for_metrics=lambda logits, labels: _first(logits),
            callbacks=[best, *([bar] if progress else [])],
        )
        # Their lines go to standard output, which belongs to results.
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        try:
            trainer.train()
        finally:
            bar.close()
    if validation is None:
        losses = [float(row["loss"]) for row in trainer.state.log_history if "loss" in row]
        best.history = [{"train_loss": loss} for loss in losses]
        best.best_epoch = len(losses)
    best.restore()
    return best


def _arguments(
    settings: TrainingSettings, folder: str, num_rows: int, evaluate: bool, device: str | None
) -> Any:
    from transformers import TrainingArguments

    steps = math.ceil(num_rows / settings.batch_size) * settings.epochs
    return TrainingArguments(
        output_dir=folder,
        num_train_epochs=settings.epochs,
        learning_rate=settings.peak_learning_rate,
        weight_decay=settings.weight_decay,
        warmup_steps=round(settings.warmup * steps),
        lr_scheduler_type="linear",
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=2 * settings.batch_size,
        eval_strategy="epoch" if evaluate else "no",
        logging_strategy="epoch",
        save_strategy="no",
        report_to="none",
        label_names=["labels"],
        remove_unused_columns=False,
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available() and device != "cpu",
        use_cpu=device == "cpu",
        seed=settings.seed,
    )


def _class_metrics(prediction: Any) -> dict[str, float]:
    logits, labels = _arrays(prediction)
    shifted = logits - logits.max(1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return {
        "nll": float(-log_probabilities[np.arange(len(labels)), labels.astype(int)].mean()),
        "accuracy": float((logits.argmax(1) == labels).mean()),
    }


def _regression_metrics(prediction: Any) -> dict[str, float]:
    """NLL of a Gaussian whose variance is the mean squared error itself."""
    outputs, targets = _arrays(prediction)
    error = max(float(((outputs[:, 0] - targets.reshape(-1)) ** 2).mean()), 1e-12)
    return {"nll": 0.5 * math.log(2.0 * math.pi * math.e * error), "rmse": math.sqrt(error)}


def _arrays(prediction: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    outputs = np.asarray(_first(prediction.predictions), dtype=np.float64)
    return outputs, np.asarray(_first(prediction.label_ids), dtype=np.float64)


def _first(values: Any) -> Any:
    """The logits, where a model returns hidden states beside them."""
    return values[0] if isinstance(values, tuple) else values


def _check_device(device: str | None) -> None:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    known = ("cpu", *([accelerator.type] if accelerator else []))
    if device is not None and device not in known:
        raise ConfigError(
            f"Training on {device!r} is not possible here. Supported: {', '.join(known)}; to "
            "choose one of several cards, set CUDA_VISIBLE_DEVICES."
        )


def _check_finite(model: PeftModel) -> None:
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


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
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
