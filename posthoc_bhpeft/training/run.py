"""Training an adapter on rows of text, through transformers' Trainer."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from posthoc_bhpeft.batches import IGNORED
from posthoc_bhpeft.data import RowSettings, TextData
from posthoc_bhpeft.data.forms import Form
from posthoc_bhpeft.data.loader import collator
from posthoc_bhpeft.errors import DataError
from posthoc_bhpeft.folders import whole_folder
from posthoc_bhpeft.rebuild import save_model
from posthoc_bhpeft.training.building import Scored, build, form_for
from posthoc_bhpeft.training.loop import Task, check_device, first, run_trainer, seeded
from posthoc_bhpeft.training.positions import most_tokens
from posthoc_bhpeft.training.record import TrainingRecord
from posthoc_bhpeft.training.settings import TrainingSettings

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TrainingResult:
    """A trained model in eval mode, its tokenizer, and the record of the run.

    Attributes:
        model: the tuned model; for rows with choices a `TaskModel` around it.
        tokenizer: of the model.
        record: what was trained on, how, and what came out.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    record: TrainingRecord

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write adapter, tokenizer and training.json: all of them or, on an error, nothing.

        Raises:
            ConfigError: the folder holds something and may not be replaced.
        """
        with whole_folder(folder, overwrite=overwrite) as fresh:
            save_model(self.model, fresh)
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

    Rows with choices (`load_rows(..., choices=True)`) are prompts for a causal language model,
    which learns to answer with the letter of the right choice; another base learns a head that
    scores one text a choice. Rows of words (`words=True`) are for a head on every word, other rows
    for a head on the text, whose outputs exclude each other unless labels are several a row.

    Texts are cut at `settings.max_length`, or earlier where the base has positions for fewer
    tokens; the record says where. With validation rows, training stops when their negative
    log-likelihood (NLL) no longer falls, and the weights of the best epoch are kept. The random
    state of the process is left as it was.

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
        ConfigError: another device than these is asked for; or rows have choices or a label for
            every word, and the base cannot answer them.
        NonFiniteError: the training broke down (NaN or infinite weights).
    """
    settings = settings or TrainingSettings()
    if data.labels is None or (validation is not None and validation.labels is None):
        raise DataError("Training needs rows with labels.")
    check_device(device, settings)
    started = time.perf_counter()
    form = form_for(model, data)
    limit = most_tokens(model)
    if limit is not None and limit < settings.max_length:
        settings = replace(settings, max_length=limit)
    with seeded(settings.seed):
        tuned, tokenizer = build(
            model, data.label_names, settings, peft_config, form, multi_label=data.multi_label
        )
        asked = form.wrap(tuned, data, tokenizer)
        task = _task(form, data, validation, tokenizer, settings)
        scored = Scored(asked) if form.with_choices else asked
        best = run_trainer(scored, task, settings, progress=progress, device=device)
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
        multi_label=data.multi_label,
    )
    return TrainingResult(asked, tokenizer, record)


def _task(
    form: Form,
    data: TextData,
    validation: TextData | None,
    tokenizer: PreTrainedTokenizerBase,
    settings: TrainingSettings,
) -> Task:
    train = form.encode(data, tokenizer, settings.max_length)
    held_out = (
        None if validation is None else form.encode(validation, tokenizer, settings.max_length)
    )
    one = _regression_metrics if data.regression else _class_metrics
    return Task(
        train=train,
        validation=held_out,
        collate=collator(tokenizer, train, *([held_out] if held_out else [])),
        metrics=_answer_metrics if data.multi_label else one,
    )


def _class_metrics(prediction: Any) -> dict[str, float]:
    """A row counts once; of words, each that has a label."""
    logits, labels = _arrays(prediction)
    counted = labels != IGNORED
    logits, labels = logits[counted], labels[counted]
    shifted = logits - logits.max(1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return {
        "nll": float(-log_probabilities[np.arange(len(labels)), labels.astype(int)].mean()),
        "accuracy": float((logits.argmax(1) == labels).mean()),
    }


def _answer_metrics(prediction: Any) -> dict[str, float]:
    """NLL of a row, summed over its labels, and the F1 of all labels that are or should be there.

    A label is there where its probability is above a half.
    """
    logits, labels = _arrays(prediction)
    said = logits > 0
    return {
        "nll": float(np.logaddexp(0, np.where(labels > 0, -logits, logits)).sum(1).mean()),
        "f1": float(2 * (said * labels).sum() / max(said.sum() + labels.sum(), 1)),
    }


def _regression_metrics(prediction: Any) -> dict[str, float]:
    """NLL of a Gaussian whose variance is the mean squared error itself."""
    outputs, targets = _arrays(prediction)
    error = max(float(((outputs[:, 0] - targets.reshape(-1)) ** 2).mean()), 1e-12)
    return {"nll": 0.5 * math.log(2.0 * math.pi * math.e * error), "rmse": math.sqrt(error)}


def _arrays(prediction: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    outputs = np.asarray(first(prediction.predictions), dtype=np.float64)
    return outputs, np.asarray(first(prediction.label_ids), dtype=np.float64)
