"""Predictions of a checkpoint: made, measured, and written as rows."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from posthoc_bhpeft.api import BayesianPeft, Predictive
from posthoc_bhpeft.audit import summary
from posthoc_bhpeft.checkpoints import load_adapter
from posthoc_bhpeft.cli.output import plain
from posthoc_bhpeft.cli.worded import rounded
from posthoc_bhpeft.data.forms import Form
from posthoc_bhpeft.data.rows import TextData
from posthoc_bhpeft.errors import ConfigError, DataError, NonFiniteError
from posthoc_bhpeft.likelihood import Bernoulli, Gaussian, Likelihood
from posthoc_bhpeft.predictive import MAP, Prediction
from posthoc_bhpeft.predictive.positions import counted_positions
from posthoc_bhpeft.predictive.uncertainty import predict_point
from posthoc_bhpeft.saving import POSTERIOR_FILE
from posthoc_bhpeft.tasks import AnswerTokens, base_of, split_task


@dataclass(frozen=True)
class Predictor:
    """A checkpoint ready to predict, with a posterior or, for the trained weights, without."""

    model: nn.Module
    bayes: BayesianPeft | None
    likelihood: Likelihood

    @property
    def regression(self) -> bool:
        """Whether it predicts real numbers."""
        return isinstance(self.likelihood, Gaussian)

    @property
    def base(self) -> str:
        """Where the base model came from."""
        base: Any = base_of(split_task(self.model)[0])
        return str(base.config._name_or_path)

    def asked(self, task: Form, rows: TextData, tokenizer: Any) -> Predictor:
        """The same without a posterior, put to the task of its rows, which no file records."""
        likelihood = Bernoulli() if rows.multi_label else self.likelihood
        return replace(self, model=task.wrap(self.model, rows, tokenizer), likelihood=likelihood)

    def check_choices(self, rows: TextData) -> None:
        """Raise where a row has more choices than the posterior has answers, before any work.

        Raises:
            DataError: With the row and what to do.
        """
        task = split_task(self.model)[1]
        if not isinstance(task, AnswerTokens) or rows.choices is None:
            return
        most = len(task.token_ids)
        for index, choices in zip(rows.indices, rows.choices, strict=True):
            if len(choices) > most:
                raise DataError(
                    f"{rows.place}: row {index} has {len(choices)} choices, and "
                    f"the model was fitted to answer with {most} letters, as many as a row had "
                    "then. Leave such rows out, or fit on rows of which one has as many."
                )

    def check_link(self) -> None:
        """Raise where a link is named and there is nothing to link, before any work.

        Raises:
            ConfigError: If numbers are predicted.
        """
        if self.regression:
            raise ConfigError(
                "--link is from logits to probabilities, and this model predicts numbers, whose "
                "mean and deviation need none. Leave it out."
            )

    @property
    def usual(self) -> Predictive:
        """The predictive that was fitted; of trained weights alone, `MAP()`."""
        return MAP() if self.bayes is None else self.bayes.predictive

    def check_review(self, predictive: Predictive) -> None:
        """Raise unless there is a rule for review that fits the predictive, before any work.

        Raises:
            ConfigError: With the command that makes one.
        """
        if isinstance(self.likelihood, Bernoulli):
            raise ConfigError(
                "--review sends a row to a human by its one answer, and this model gives a row "
                "several labels. Leave it out: predictions.jsonl says how uncertain each label is, "
                "and `bhpeft audit CHECKPOINT --label NAME` finds a threshold for one."
            )
        if self.bayes is None:
            raise ConfigError(
                "--review needs a posterior with a rule for review, and this checkpoint has no "
                "posterior. Run `bhpeft fit`, then `bhpeft audit --save-review`."
            )
        self.bayes.rule_for(predictive)

    def describe_review(self, prediction: Prediction) -> dict[str, Any]:
        """How many rows go to a human and what was promised; nothing where nobody asked."""
        rule = None if self.bayes is None else self.bayes.review_rule
        if rule is None or prediction.review is None:
            return {}
        rows = int(prediction.review.sum())
        share = rows / len(prediction)
        return {"review": {"rows": rows, "share": share, "promise": rule.promise}}

    def predict(
        self, loader: Any, predictive: Predictive, *, review: bool = False, progress: bool
    ) -> Prediction:
        """Predict all batches, in the order of the loader, on the CPU."""
        if self.bayes is not None:
            return self.bayes.predict_loader(loader, predictive, review=review, progress=progress)
        return _predict_without_posterior(self.model, loader, self.likelihood, progress)


def load_predictor(
    folder: Path,
    *,
    base: str | None,
    storage: Mapping[str, Any],
    device: torch.device,
    point: bool,
    likelihood: Likelihood,
) -> Predictor:
    """Load a checkpoint with its posterior; for trained weights alone it needs none.

    Args:
        folder: Of the checkpoint.
        base: The base model, where the recorded one is not to be used.
        storage: How the base is kept, where no posterior tells.
        device: To predict on.
        point: Whether the trained weights alone will do.
        likelihood: Of the labels, for these.

    Raises:
        CheckpointError: there is no posterior, or something does not fit.
    """
    if point and not (folder / POSTERIOR_FILE).is_file():
        return Predictor(load_adapter(folder, base=base, **storage).to(device), None, likelihood)
    bayes = BayesianPeft.from_pretrained(folder, base=base, device=device)
    return Predictor(bayes.model, bayes, bayes.likelihood)


def _predict_without_posterior(
    model: nn.Module, loader: Any, likelihood: Likelihood, progress: bool
) -> Prediction:
    from posthoc_bhpeft.batches import device_of, evaluating, forward, move, split_batch
    from posthoc_bhpeft.progress import track

    parts, positions = [], likelihood.positions
    with evaluating(model), torch.no_grad():
        for batch in track(loader, "Predict", len(loader), progress):
            inputs, labels = split_batch(batch)
            inputs = move(inputs, device_of(model))
            outputs = forward(model, inputs, positions=positions)
            mask = counted_positions(model, inputs, outputs) if positions else None
            point = replace(predict_point(likelihood, outputs), mask=mask)
            parts.append(point.with_labels(labels).cpu())
    return Prediction.concatenate(parts)


def measure(prediction: Prediction, rows: TextData) -> dict[str, float]:
    """Figures of a labelled split; nothing where there are no labels."""
    if rows.labels is None or prediction.labels is None:
        return {}
    if prediction.probabilities is not None and prediction.multilabel:
        return measure_answers(prediction.probabilities, prediction.labels)
    if prediction.probabilities is not None:
        return dict(summary(prediction.probabilities, prediction.labels).to_dict())
    error = prediction.logits[:, 0].double() - prediction.labels.double().reshape(-1)
    deviation = standard_deviation(prediction)
    nll = 0.5 * (error / deviation) ** 2 + deviation.log() + 0.5 * math.log(2.0 * math.pi)
    return {
        "rows": len(rows),
        "rmse": float(error.square().mean().sqrt()),
        "nll": float(nll.mean()),
    }


def measure_answers(probabilities: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Figures of several labels a row: over rows, and over all yes-or-no answers.

    `nll` is in nats a row, summed over its answers; `exact` is the share of rows with no answer
    wrong; `f1` is that of all answers that are or should be yes.
    """
    p, truth = probabilities.double(), labels.double()
    said = (p > 0.5).double()
    eps = torch.finfo(torch.float64).tiny
    nll = -(truth * (p + eps).log() + (1 - truth) * (1 - p + eps).log()).sum(1)
    return {
        "rows": len(p),
        "nll": float(nll.mean()),
        "brier": float((p - truth).square().sum(1).mean()),
        "exact": float((said == truth).all(1).double().mean()),
        "f1": float(2 * (said * truth).sum() / (said.sum() + truth.sum()).clamp_min(1)),
    }


def standard_deviation(prediction: Prediction) -> torch.Tensor:
    """Of a Gaussian, from its entropy `(N,)` in nats: `log(sd) + log(2 pi e) / 2`."""
    return (prediction.total.double() - 0.5 * math.log(2.0 * math.pi * math.e)).exp()


def prediction_rows(
    prediction: Prediction, rows: TextData, label_names: Sequence[str] | None
) -> Iterator[dict[str, Any]]:
    """One JSON object a row, in the order of the data."""
    deviations = None if prediction.probabilities is not None else standard_deviation(prediction)
    for n, index in enumerate(rows.indices):
        row: dict[str, Any] = {"index": index}
        if rows.labels is not None:
            row["label"] = rows.labels[n]
        if prediction.probabilities is not None:
            row |= _answer(prediction, n, label_names)
            row["probabilities"] = rounded(prediction.probabilities[n])
        elif deviations is not None:
            row["prediction"] = float(prediction.logits[n, 0])
            row["probabilities"] = None
            row["standard_deviation"] = float(deviations[n])
        row |= {name: round(float(v[n]), 7) for name, v in prediction.uncertainties.items()}
        if prediction.answer_epistemic is not None:
            row["label_epistemic"] = rounded(prediction.answer_epistemic[n])
        yield row | _reviewed(prediction, n, label_names)


def _answer(prediction: Prediction, n: int, label_names: Sequence[str] | None) -> dict[str, Any]:
    """The class of a row and its name; of several labels a 0 or 1 for each, and names of some."""
    if not prediction.multilabel:
        chosen = int(prediction.predicted[n])
        return {"prediction": chosen} | ({"name": label_names[chosen]} if label_names else {})
    said = prediction.predicted[n].tolist()
    names = [name for name, yes in zip(label_names or (), said, strict=False) if yes]
    return {"prediction": said} | ({"names": names} if label_names else {})


def _reviewed(prediction: Prediction, n: int, label_names: Sequence[str] | None) -> dict[str, Any]:
    """Whether a row goes to a human, and its prediction set; nothing where nobody asked."""
    found: dict[str, Any] = {}
    if prediction.review is not None:
        found["review"] = bool(prediction.review[n])
    if prediction.sets is not None:
        classes = prediction.sets[n].nonzero().flatten().tolist()
        found["set"] = [c if label_names is None else label_names[c] for c in classes]
    return found


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines.

    Raises:
        NonFiniteError: If something in a row is NaN, which JSON has no word for.
    """
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            if wrong := [name for name, value in row.items() if has_nan(value)]:
                raise NonFiniteError(
                    f"{path.name}: {', '.join(wrong)} of row {row.get('index')} are NaN, so "
                    "nothing is predicted there, and no file was written. Where --link or "
                    "--predictive were given, leave them out; else fit anew in --dtype float32."
                )
            file.write(json.dumps(plain(row), ensure_ascii=False) + "\n")


def has_nan(value: Any) -> bool:
    """Whether a value, or one of a list, is NaN."""
    if isinstance(value, list | tuple):
        return any(map(has_nan, value))
    return isinstance(value, float) and math.isnan(value)
