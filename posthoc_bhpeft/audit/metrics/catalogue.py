"""The metrics of an audit, each with what it means; `docs/metrics.md` has a section for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Generic, Literal, TypeVar

import numpy as np

from posthoc_bhpeft.audit.arrays import Floats
from posthoc_bhpeft.audit.metrics import (
    calibration,
    detection,
    gaussian,
    proper,
    selective,
    smooth,
)
from posthoc_bhpeft.audit.metrics.bootstrap import Draws, Interval
from posthoc_bhpeft.audit.metrics.detection import Scored
from posthoc_bhpeft.audit.metrics.gaussian import DrawnGaussians
from posthoc_bhpeft.audit.metrics.rows import Resampled, Rows
from posthoc_bhpeft.audit.predictions import CONFIDENCE, Predictions

Drawn = TypeVar("Drawn")


@dataclass(frozen=True)
class Metric(Generic[Drawn]):
    """A figure, what it means and how it is computed.

    Attributes:
        name: For code, files and gates; its section in `docs/metrics.md` has the same name.
        title: For tables.
        definition: What it says, in a sentence or two.
        formula: The same for those who want it exact.
        better: Which way is good; `target` where the best value is in the middle.
        unit: What it is measured in: `share`, `nats`, `unit of the targets`, or nothing.
        source: Where it was defined.
        values: Its value on each resample, `(R,)`.
        excess: How far noise may have lifted it on each resample, for errors that are never below
            zero; `None` for others.
        biased: Whether noise moves it to one side, so that its interval is reflected.
        least: The smallest value that it can take.
        most: The largest.
        target: The best value, where `better` says so.
        exact: Its interval from all rows and a level, for a figure that may rest on so few of them
            that resamples tell too little; where it gives `None`, they tell enough.
    """

    name: str
    title: str
    definition: str
    formula: str
    better: Literal["lower", "higher", "target"]
    unit: str
    source: str
    values: Callable[[Drawn], Floats]
    excess: Callable[[Drawn], Floats] | None = None
    biased: bool = False
    least: float = 0.0
    most: float = 1.0
    target: float | None = None
    exact: Callable[[Drawn, float], Interval | None] | None = None

    def interval(self, draws: Draws, whole: Drawn, level: float) -> Interval:
        """Its interval: from the resamples, unless it has an exact one for these rows."""
        exact = None if self.exact is None else self.exact(whole, level)
        return draws.interval(level, self.least, self.most) if exact is None else exact

    def show(self, value: float) -> str:
        """A value for a table: four decimals, per cent for a share, `n/a` where there is none."""
        if not np.isfinite(value):
            return "n/a"
        return f"{100 * value:.1f} %" if self.unit == "share" else f"{value:.4f}"


def value_of(metric: Metric[Resampled], predictions: Predictions, score: str = CONFIDENCE) -> float:
    """One metric on all rows, without an interval; NaN where it has no meaning.

    Raises:
        DataError: If there are no labels, or no score of that name.
    """
    return float(metric.values(Rows.of(predictions, score).whole)[0])


def _answered(share: int) -> Metric[Resampled]:
    return Metric(
        f"accuracy_at_{share}",
        f"Accuracy at {share} % coverage",
        f"The share of right answers when only the {share} % most certain rows are answered.",
        f"share of right among the round({share / 100:g} N) rows of least doubt, ties averaged",
        "higher",
        "share",
        "https://arxiv.org/abs/1705.08500",
        partial(selective.accuracy_at_of, coverage=share / 100),
    )


METRICS: tuple[Metric[Resampled], ...] = (
    Metric(
        "accuracy",
        "Accuracy",
        "The share of rows whose most probable class is the label.",
        "1/N sum_n 1[argmax_c p_nc = y_n]",
        "higher",
        "share",
        "https://en.wikipedia.org/wiki/Accuracy_and_precision#In_classification",
        proper.accuracy_of,
    ),
    Metric(
        "macro_f1",
        "Macro F1",
        "F1 of each class, averaged so that a rare class counts as much as a common one.",
        "mean_c 2 TP_c / (predicted_c + true_c), over classes that are predicted or true",
        "higher",
        "",
        "https://arxiv.org/abs/1911.03347",
        proper.macro_f1_of,
        biased=True,
    ),
    Metric(
        "nll",
        "Negative log likelihood",
        "How surprised the model is by the labels: minus the logarithm of the probability of the "
        "label, averaged. One confident mistake costs a lot.",
        "-1/N sum_n log p_n,y_n",
        "lower",
        "nats",
        "https://doi.org/10.1198/016214506000001437",
        proper.nll_of,
        most=np.inf,
    ),
    Metric(
        "brier",
        "Brier score",
        "The squared distance between the probabilities and the label, averaged; from 0 to 2.",
        "1/N sum_n sum_c (p_nc - 1[c = y_n])^2",
        "lower",
        "",
        "https://doi.org/10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2",
        proper.brier_of,
        most=2.0,
    ),
    Metric(
        "brier_calibration",
        "Brier, calibration part",
        "The part of the Brier score that is there because probabilities differ from frequencies; "
        "mending them would save it. With the refinement part it makes the score exactly.",
        "1/N sum_b n_b (mean p - share true)^2 over all N C probabilities in 15 bins",
        "lower",
        "",
        "https://doi.org/10.1175/2007WAF2006116.1",
        proper.brier_calibration_of,
        biased=True,
        most=2.0,
    ),
    Metric(
        "brier_refinement",
        "Brier, refinement part",
        "The part of the Brier score that is left with perfect frequencies in every bin: how "
        "poorly the probabilities tell rows apart.",
        "1/N sum_b sum_(in b) (r - mean r)^2, residuals r = p_nc - 1[c = y_n]",
        "lower",
        "",
        "https://doi.org/10.1175/2007WAF2006116.1",
        proper.brier_refinement_of,
        biased=True,
        most=2.0,
    ),
    Metric(
        "ece",
        "ECE, 15 bins of equal width",
        "The gap between confidence and accuracy, averaged over rows in bins of equal width. "
        "Chance alone makes it larger than zero.",
        "sum_b n_b / N |mean confidence_b - accuracy_b|",
        "lower",
        "",
        "https://arxiv.org/abs/1706.04599",
        calibration.ece_of,
        calibration.ece_excess,
        biased=True,
    ),
    Metric(
        "ece_equal_mass",
        "ECE, 15 bins of equal mass",
        "The same gap in bins that hold equally many rows, so that none is too small to trust.",
        "sum_b n_b / N |mean confidence_b - accuracy_b|, borders at quantiles",
        "lower",
        "",
        "https://arxiv.org/abs/1904.01685",
        calibration.ece_mass_of,
        calibration.ece_mass_excess,
        biased=True,
    ),
    Metric(
        "smooth_ece",
        "Smooth ECE",
        "The gap between confidence and accuracy without bins, smoothed with a width that the "
        "data choose; it does not jump when probabilities move a little.",
        "the s with integral_0^1 |1/N sum_n K_s(t, q_n) (q_n - right_n)| dt = s",
        "lower",
        "",
        "https://arxiv.org/abs/2309.12236",
        smooth.smooth_of,
        smooth.smooth_excess,
        biased=True,
    ),
    Metric(
        "mce",
        "Maximum calibration error",
        "The largest gap between confidence and accuracy in any of 15 bins that hold equally many "
        "rows.",
        "max_b |mean confidence_b - accuracy_b|, borders at quantiles",
        "lower",
        "",
        "https://doi.org/10.1609/aaai.v29i1.9602",
        calibration.mce_of,
        calibration.mce_excess,
        biased=True,
    ),
    Metric(
        "classwise_ece",
        "Classwise calibration error",
        "The gap between the probability of a class and how often it is true, averaged over all "
        "classes, not only the predicted one. Small where classes are many.",
        "1/C sum_c sum_b n_cb / N |mean p_c - share of c|, 15 bins of p_c for each class",
        "lower",
        "",
        "https://arxiv.org/abs/1910.12656",
        calibration.classwise_of,
        calibration.classwise_excess,
        biased=True,
    ),
    Metric(
        "aurc",
        "AURC",
        "The error rate among the most certain rows, averaged over how many are kept. Low when "
        "errors are few and doubt finds them.",
        "1/N sum_k (errors among the k most certain) / k",
        "lower",
        "",
        "https://arxiv.org/abs/1705.08500",
        selective.aurc_of,
    ),
    Metric(
        "augrc",
        "AUGRC",
        "The chance that a row is kept and wrong, averaged over how many are kept. Unlike AURC, "
        "the few most certain rows do not decide it.",
        "1/N^2 sum_(n wrong) (rows of more doubt than n + half of those of equal doubt)",
        "lower",
        "",
        "https://arxiv.org/abs/2407.01032",
        selective.augrc_of,
        most=0.5,
    ),
    _answered(80),
    _answered(90),
    _answered(95),
    Metric(
        "errors_removed_at_10",
        "Errors removed by rejecting 10 %",
        "The share of all errors that are among the 10 % least certain rows. Doubt that knows "
        "nothing removes 10 %.",
        "errors among the round(0.1 N) rows of most doubt / errors; ties by expectation",
        "higher",
        "share",
        "https://arxiv.org/abs/1705.08500",
        selective.errors_removed_of,
        exact=selective.errors_removed_interval,
    ),
)

DETECTION: tuple[Metric[Scored], ...] = (
    Metric(
        "auroc",
        "AUROC",
        "The chance that a row from outside gets more doubt than one from inside; 50 % is chance.",
        "P(s_out > s_in) + P(s_out = s_in) / 2",
        "higher",
        "share",
        "https://arxiv.org/abs/1610.02136",
        detection.auroc_of,
    ),
    Metric(
        "aupr",
        "AUPR",
        "The mean precision when rows are flagged from the most doubt down, rows from outside "
        "being what is sought. Chance is their share of all rows.",
        "sum_k (recall_k - recall_(k-1)) precision_k",
        "higher",
        "share",
        "https://arxiv.org/abs/1610.02136",
        detection.aupr_of,
    ),
    Metric(
        "fpr95",
        "FPR at 95 % TPR",
        "The share of rows from outside that pass where 95 % of those from inside do; 95 % is "
        "chance.",
        "P(s_out <= t) at the least t with P(s_in <= t) >= 0.95",
        "lower",
        "share",
        "https://arxiv.org/abs/1706.02690",
        detection.fpr95_of,
    ),
)

GAUSSIAN: tuple[Metric[DrawnGaussians], ...] = (
    Metric(
        "gaussian_nll",
        "Negative log likelihood",
        "Minus the logarithm of the predictive density at the target, averaged. It depends on the "
        "unit of the targets and may be below zero.",
        "1/N sum_n [log sigma_n + log(2 pi) / 2 + (y_n - mu_n)^2 / (2 sigma_n^2)]",
        "lower",
        "nats",
        "https://doi.org/10.1198/016214506000001437",
        lambda drawn: drawn.mean(drawn.rows.nll),
        least=-np.inf,
        most=np.inf,
    ),
    Metric(
        "crps",
        "CRPS",
        "The distance between the predictive distribution and the target; for a prediction "
        "without doubt it is the absolute error.",
        "1/N sum_n sigma_n (z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt(pi)), z = (y_n - mu_n)/sigma_n",
        "lower",
        "unit of the targets",
        "https://doi.org/10.1198/016214506000001437",
        lambda drawn: drawn.mean(drawn.rows.crps),
        most=np.inf,
    ),
    Metric(
        "rmse",
        "Root mean squared error",
        "The usual error of the mean; it says nothing about the uncertainty.",
        "sqrt(1/N sum_n (y_n - mu_n)^2)",
        "lower",
        "unit of the targets",
        "https://en.wikipedia.org/wiki/Root_mean_square_deviation",
        gaussian.rmse_of,
        most=np.inf,
    ),
    Metric(
        "interval_coverage",
        "Coverage of 90 % intervals",
        "The share of targets inside the central 90 % interval; 90 % is right, less is "
        "over-confident.",
        "1/N sum_n 1[|y_n - mu_n| <= 1.645 sigma_n]",
        "target",
        "share",
        "https://doi.org/10.1198/016214506000001437",
        gaussian.coverage_of,
        target=0.90,
    ),
    Metric(
        "interval_width",
        "Width of 90 % intervals",
        "The mean width of the central 90 % interval; narrower is better where coverage is right.",
        "1/N sum_n 2 * 1.645 sigma_n",
        "lower",
        "unit of the targets",
        "https://doi.org/10.1198/016214506000001437",
        gaussian.width_of,
        most=np.inf,
    ),
    Metric(
        "pit_error",
        "PIT calibration error",
        "The gap between the level of a predicted quantile and the share of targets below it, "
        "averaged over all levels.",
        "integral_0^1 |1/N sum_n 1[Phi(z_n) <= u] - u| du",
        "lower",
        "",
        "https://doi.org/10.1111/j.1467-9868.2007.00587.x",
        gaussian.pit_error_of,
        gaussian.pit_excess,
        biased=True,
        most=0.5,
    ),
)
