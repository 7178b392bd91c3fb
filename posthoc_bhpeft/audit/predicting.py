"""Predictions of a model for a loader, beside the texts they are about."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import RandomSampler, SubsetRandomSampler, WeightedRandomSampler

from posthoc_bhpeft.api import BayesianPeft
from posthoc_bhpeft.audit.decisions import PREDICTIVE
from posthoc_bhpeft.audit.one_label import OneLabel
from posthoc_bhpeft.audit.predictions import Predictions
from posthoc_bhpeft.batches import check_rereadable
from posthoc_bhpeft.data import EncodedRows, TextData, in_row_order
from posthoc_bhpeft.errors import ConfigError, DataError
from posthoc_bhpeft.likelihood import Bernoulli, Gaussian, Tokens
from posthoc_bhpeft.predictive import Prediction
from posthoc_bhpeft.rivals import Point, Rival
from posthoc_bhpeft.rivals.ensemble import class_names

NOT_CLASSES = (
    "An audit is about one class a row, or about one number. Of several yes-or-no answers audit "
    "one at a time (--label NAME), as Predictions.of(bayes.predict_loader(loader).answer(index)) "
    "or Predictions(stack([1 - p, p], 1), labels); of a regression, "
    "RealPredictions (posthoc_bhpeft.audit) or a BayesianPeft with a Gaussian likelihood."
)
"""What to do with other outputs."""

OF_ONE_CLASS = "single_label_classification"
_BY_CHANCE = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)


def predictions_of(
    subject: BayesianPeft | Rival | nn.Module,
    loader: Iterable[Any],
    rows: TextData | None = None,
    *,
    labels: bool = True,
    progress: bool = True,
) -> Predictions:
    """What a model says about a loader's rows, in their order.

    Args:
        subject: A `BayesianPeft`, a rival, or a model without posterior.
        loader: Batches in an order that stays the same.
        rows: Texts and columns, in order; a loader of `make_loader` has them.
        labels: Whether to read those of the batches; rows of another kind may have any.
        progress: Show a progress bar.

    Raises:
        ConfigError: If the loader draws its rows at random, or model and rows number the classes
            in another order.
        DataError: If these are no class probabilities, labels do not fit, or rows are not those of
            the loader.
    """
    check_order(loader)
    check_kind(subject)
    rival = Point(subject) if isinstance(subject, nn.Module) else subject
    about_rows = rows or rows_of(loader)
    # Rows whose labels are not read may call their classes what they like.
    names = names_for(about_rows if labels else None, getattr(rival, "model", None))
    prediction = in_row_order(loader, rival.predict_loader(loader, progress=progress))
    if prediction.probabilities is None or prediction.multilabel:
        raise DataError(NOT_CLASSES)
    if labels:
        check_labels_of(prediction, about_rows)
    else:
        prediction = replace(prediction, labels=None)
    about = {}
    source = rival.source if isinstance(rival, OneLabel) else rival
    if isinstance(source, BayesianPeft):
        about = {PREDICTIVE: repr(source.predictive), "Posterior": source.explain()}
    found = Predictions.of(prediction, about_rows, **about)
    classes = found.probabilities.shape[1]
    return replace(found, label_names=next((n for n in names if len(n) == classes), None))


def rows_of(loader: Any) -> TextData | None:
    """The texts behind a loader, where it knows them and reads them in an order that is known."""
    encoded = getattr(loader, "dataset", None)
    batches = getattr(loader, "batch_sampler", None)
    in_order = getattr(batches, "sampler", None) is getattr(loader, "sampler", None)
    return encoded.rows if isinstance(encoded, EncodedRows) and in_order else None


def described(rows: TextData | None) -> str:
    """Where rows came from and which split they are, for a heading; empty where nobody knows.

    Of a path that stands for a place on one machine, only the name.
    """
    if rows is None:
        return ""
    place = Path(rows.source)
    name = place.name if place.is_absolute() else rows.source
    return ", ".join(filter(None, [name, rows.shown_split]))


def check_order(loader: Any) -> None:
    """Raise where every pass would see the rows in another order, or only the first sees any.

    Raises:
        ConfigError: If the loader shuffles.
        DataError: If it can be read only once.
    """
    check_rereadable(loader, "loader")
    samplers = (loader, getattr(loader, "batch_sampler", None))
    if any(isinstance(getattr(one, "sampler", None), _BY_CHANCE) for one in samplers):
        raise ConfigError(
            "The loader draws its rows at random, so neither texts nor the predictions of another "
            "model would stand beside their rows. Make it with shuffle=False."
        )


def check_kind(subject: object) -> None:
    """Raise where a subject says that it does not choose one class a row.

    Raises:
        DataError: With what it says.
    """
    likelihood = getattr(subject, "likelihood", None)
    if isinstance(likelihood, Tokens):
        raise DataError(
            "An audit is about one class a row, and this posterior has one at every position of a "
            "text. Make positions the rows: audit(Predictions.of(bayes.predict_loader(loader)"
            ".at_positions()))."
        )
    if isinstance(likelihood, Bernoulli | Gaussian):
        raise DataError(f"{NOT_CLASSES} This one has the likelihood {likelihood}.")
    config = getattr(subject, "config", None)
    kind = getattr(config, "problem_type", None) or OF_ONE_CLASS
    if kind != OF_ONE_CLASS or getattr(config, "num_labels", 2) == 1:
        raise DataError(f"{NOT_CLASSES} This model is for {kind.replace('_', ' ')}.")


def check_labels_of(prediction: Prediction, rows: TextData | None) -> None:
    """Raise where the labels of the batches show that the rows are in another order.

    Raises:
        DataError: If they differ from those of the rows.
    """
    if rows is None or rows.labels is None or prediction.labels is None:
        return
    theirs = prediction.labels.tolist()
    if len(theirs) == len(rows) and theirs != list(rows.labels):
        raise DataError(
            "The labels of the batches are not those of the rows, so the texts would stand beside "
            "the wrong predictions. Pass rows in the order of the loader."
        )


def names_for(rows: TextData | None, model: Any) -> list[tuple[str, ...]]:
    """Names of the classes that may fit, the best first: those of the rows, of the model.

    Raises:
        ConfigError: If both have the same names in another order.
    """
    theirs = None if model is None else class_names(model)
    said = [rows.label_names if rows is not None else None, theirs]
    names = [tuple(one) for one in said if one]
    if len(names) == 2 and names[0] != names[1] and sorted(names[0]) == sorted(names[1]):
        raise ConfigError(
            f"The rows number their classes {', '.join(names[0])} and the model numbers them "
            f"{', '.join(names[1])}, so right answers would count as wrong. Read the rows with "
            f"label_names={list(names[1])}."
        )
    return names
