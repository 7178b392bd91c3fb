"""Every figure of a regression, with its interval, and its difference from a rival's."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from posthoc_bhpeft.audit.metrics import Interval
from posthoc_bhpeft.audit.metrics.bootstrap import Draws, draw_weights
from posthoc_bhpeft.audit.metrics.catalogue import GAUSSIAN, Metric
from posthoc_bhpeft.audit.metrics.gaussian import (
    DrawnGaussians,
    bias_of,
    mae_of,
    r2_of,
    removed_of,
    rmse_kept_of,
)
from posthoc_bhpeft.audit.metrics.measuring import drawn_figures
from posthoc_bhpeft.audit.regression.predictions import RealPredictions
from posthoc_bhpeft.errors import DataError

REGRESSION: tuple[Metric[DrawnGaussians], ...] = (
    *GAUSSIAN,
    Metric(
        "mae",
        "Mean absolute error",
        "How far off a prediction is on average; a few large errors weigh less than in the root "
        "mean squared error.",
        "1/N sum_n |y_n - mu_n|",
        "lower",
        "unit of the targets",
        "https://en.wikipedia.org/wiki/Mean_absolute_error",
        mae_of,
        most=np.inf,
    ),
    Metric(
        "bias",
        "Mean error",
        "Which way predictions lean: above 0 they are too high on average, below 0 too low. Large "
        "errors either way cancel.",
        "1/N sum_n (mu_n - y_n)",
        "target",
        "unit of the targets",
        "https://en.wikipedia.org/wiki/Bias_of_an_estimator",
        bias_of,
        least=-np.inf,
        most=np.inf,
        target=0.0,
    ),
    Metric(
        "r2",
        "R2",
        "The share of the spread of the targets that the predictions explain: 1 is all of it, 0 is "
        "what the average target would reach, below 0 is worse than that.",
        "1 - sum_n (y_n - mu_n)^2 / sum_n (y_n - average of y)^2",
        "higher",
        "",
        "https://en.wikipedia.org/wiki/Coefficient_of_determination",
        r2_of,
        least=-np.inf,
    ),
    Metric(
        "rmse_at_90",
        "Error after review of 10 %",
        "The root mean squared error of the 90 % of rows with the smallest predicted deviation, as "
        "if a person took the others.",
        "RMSE of the rows that are left without the 10 % of largest sigma_n, ties in equal parts",
        "lower",
        "unit of the targets",
        "https://arxiv.org/abs/1901.09192",
        rmse_kept_of,
        most=np.inf,
    ),
    Metric(
        "error_removed_at_10",
        "Squared error removed at 10 %",
        "The part of all squared error that lies in the 10 % of rows with the largest predicted "
        "deviation; a ranking by chance has 10 %.",
        "sum of (y_n - mu_n)^2 over the 10 % of largest sigma_n / sum over all rows",
        "higher",
        "share",
        "https://arxiv.org/abs/1901.09192",
        removed_of,
    ),
)
"""All figures of a regression."""

HEADLINE = (
    "rmse", "r2", "bias", "gaussian_nll", "crps", "interval_coverage", "interval_width",
    "error_removed_at_10",
)  # fmt: skip
"""The figures that are shown at once; the others are folded."""


def draws_of(
    predictions: RealPredictions, resamples: int = 1000, seed: int = 0
) -> Mapping[str, Draws]:
    """What each figure did over resamples of the rows, by name.

    Equal seeds and numbers of rows draw the same rows, so that two models can be compared on them.

    Raises:
        DataError: If there are no targets.
        ConfigError: If there is no resample.
    """
    rows = predictions.gaussians
    generator = torch.Generator().manual_seed(seed)
    pieces = (DrawnGaussians(rows, w) for w in draw_weights(len(rows), resamples, generator))
    return drawn_figures(REGRESSION, DrawnGaussians.whole(rows), pieces)


def intervals(draws: Mapping[str, Draws], level: float = 0.95) -> Mapping[str, Interval]:
    """Each figure with its bootstrap interval, by name."""
    return {m.name: draws[m.name].interval(level, m.least, m.most) for m in REGRESSION}


def differences(
    mine: Mapping[str, Draws], theirs: Mapping[str, Draws], level: float = 0.95
) -> Mapping[str, Interval]:
    """The subject's figure less the rival's on the same resamples, by name."""
    return {m.name: mine[m.name].less(theirs[m.name], level) for m in REGRESSION}


def check_same_rows(subject: RealPredictions, rival: RealPredictions, name: str) -> None:
    """Raise where two models were not shown the same rows.

    Raises:
        DataError: With what differs.
    """
    if len(subject) != len(rival):
        raise DataError(
            f"The subject has {len(subject)} rows and {name} {len(rival)}; a paired comparison "
            "needs predictions for the same rows, in the same order."
        )
    differ = int((subject.known_targets != rival.known_targets).sum())
    if differ:
        raise DataError(
            f"{differ} of {len(subject)} targets of the subject and of {name} differ, so they are "
            "not about the same rows in the same order. Sort both by the same column first."
        )
