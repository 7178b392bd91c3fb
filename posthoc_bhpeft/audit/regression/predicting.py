"""Predictions of a number by a model for a loader, beside the texts they are about."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
from torch import nn

from posthoc_bhpeft.api import BayesianPeft
from posthoc_bhpeft.audit.arrays import as_floats
from posthoc_bhpeft.audit.decisions import PREDICTIVE
from posthoc_bhpeft.audit.predicting import check_order, rows_of
from posthoc_bhpeft.audit.regression.predictions import RealPredictions
from posthoc_bhpeft.data import TextData, in_row_order
from posthoc_bhpeft.errors import ConfigError, DataError
from posthoc_bhpeft.likelihood import Gaussian
from posthoc_bhpeft.predictive import Prediction
from posthoc_bhpeft.rivals import Point, Rival

RealSubject: TypeAlias = BayesianPeft | Rival | nn.Module | RealPredictions
"""What can be audited: something that predicts a number, or what it predicted."""

NO_NOISE = (
    "A regression model without posterior predicts a number and no variance, so nothing says how "
    "sure it is. Pass fit_noise(model, validation_loader), which adds the variance of its errors "
    "on held-out rows, or the posterior: bayesianize(model, loader, likelihood=Gaussian())."
)


def is_regression(subject: object) -> bool:
    """Whether a subject predicts numbers, as far as it says so before it predicts."""
    if isinstance(subject, RealPredictions):
        return True
    if isinstance(subject, nn.Module):
        config = getattr(subject, "config", None)
        kind = getattr(config, "problem_type", None)
        return kind == "regression" or (kind is None and getattr(config, "num_labels", 2) == 1)
    return isinstance(getattr(subject, "likelihood", None), Gaussian)


def real_predictions_of(
    subject: RealSubject,
    loader: Iterable[Any] | None,
    rows: TextData | None = None,
    *,
    progress: bool = True,
) -> RealPredictions:
    """What a regression says about a loader's rows, in their order.

    Args:
        subject: A `BayesianPeft` with a Gaussian likelihood, a rival, or predictions made already.
        loader: Batches in an order that stays the same; not needed for predictions.
        rows: Texts and columns, in order; a loader of `make_loader` has them.
        progress: Show a progress bar.

    Raises:
        ConfigError: If there is no loader or one that draws rows at random, or nothing says how
            large the noise is.
        DataError: If these are class probabilities, or rows are not those of the loader.
    """
    if isinstance(subject, RealPredictions):
        return subject
    if loader is None:
        raise ConfigError("A model is audited on rows: pass a loader of held-out rows.")
    check_order(loader)
    check_subject(subject)
    assert not isinstance(subject, nn.Module), "check_subject raises for these"
    about_rows = rows or rows_of(loader)
    prediction = in_row_order(loader, subject.predict_loader(loader, progress=progress))
    check_targets_of(prediction, about_rows)
    about = {}
    if isinstance(subject, BayesianPeft):
        about = {PREDICTIVE: repr(subject.predictive), "Posterior": subject.explain()}
    return RealPredictions.of(prediction, about_rows, **about)


def check_subject(subject: object) -> None:
    """Raise where something does not predict, or nothing says how large the noise is.

    Raises:
        ConfigError: With the ways out.
    """
    if isinstance(subject, RealPredictions):
        return
    # A rival is known by its method; a class has it too, and is not made yet.
    predicts = hasattr(subject, "predict_loader") and not isinstance(subject, type)
    if not predicts and not isinstance(subject, nn.Module):
        raise ConfigError(
            f"A {type(subject).__name__} cannot be audited. Pass a BayesianPeft, a rival such as "
            "fit_noise(model, validation_loader), or RealPredictions."
        )
    likelihood = getattr(subject, "likelihood", None)
    unknown = isinstance(likelihood, Gaussian) and likelihood.noise_variance is None
    if isinstance(subject, nn.Module) or unknown:
        raise ConfigError(NO_NOISE)


def check_targets_of(prediction: Prediction, rows: TextData | None) -> None:
    """Raise where the targets of the batches show that the rows are in another order.

    Raises:
        DataError: If they differ from those of the rows.
    """
    if rows is None or rows.labels is None or prediction.labels is None:
        return
    theirs = as_floats(prediction.labels).reshape(-1)
    # Batches may be in half precision.
    if len(theirs) == len(rows) and not np.allclose(theirs, rows.labels, rtol=1e-2, atol=1e-6):
        raise DataError(
            "The targets of the batches are not those of the rows, so the texts would stand beside "
            "the wrong predictions. Pass rows in the order of the loader."
        )


def fit_noise(model: nn.Module, loader: Iterable[Any], *, progress: bool = True) -> Point:
    """The trained weights alone, with the noise that fits held-out rows best.

    `s2 = 1/N sum_n (y_n - f_n)^2`, the variance with the largest likelihood; on training rows it
    would be too small.

    Args:
        model: A trained model with one output.
        loader: Held-out rows with targets, which must not be those of the audit.
        progress: Show a progress bar.

    Raises:
        DataError: If there are no targets, several outputs, or no error at all.
    """
    point = Point(model, Gaussian(1.0))
    found = RealPredictions.of(point.predict_loader(loader, progress=progress))
    noise = float((found.error**2).mean())
    if noise == 0.0:
        raise DataError(
            f"The model makes no error at all on these {len(found)} rows, so they say nothing "
            "about its noise. Were they its training rows? Pass held-out ones."
        )
    return replace(point, likelihood=Gaussian(noise))
