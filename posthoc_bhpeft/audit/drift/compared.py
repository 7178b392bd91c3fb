"""Whether the rows are still those that a model was checked on, and what changed over time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from posthoc_bhpeft.audit.drift.labelshift import estimate_labels
from posthoc_bhpeft.audit.drift.periods import Period, Timeline, Trend, periods_of, timeline, trend
from posthoc_bhpeft.audit.drift.sentences import Facts, sentences
from posthoc_bhpeft.audit.drift.twosample import (
    Told,
    homogeneity_p_value,
    mean_difference,
    tell_outputs_apart,
    tell_texts_apart,
)
from posthoc_bhpeft.audit.metrics import Interval
from posthoc_bhpeft.audit.predictions import CONFIDENCE, Predictions
from posthoc_bhpeft.audit.slices.significance import (
    accuracy_difference,
    accuracy_p_value,
    adjust,
    check_level,
)
from posthoc_bhpeft.errors import ConfigError, DataError

EPISTEMIC, NOVELTY = "epistemic", "novelty"
_FEWEST = 20


@dataclass(frozen=True)
class Drift:
    """Rows against a reference set. P-values are those of single tests; `findings` adjust them.

    Attributes:
        rows: Rows of the set under audit.
        reference_rows: Rows of the reference.
        label_shift: p-value that the predicted classes are as frequent as in the reference.
        frequencies: Share of each predicted class by name: in the reference, and now.
        covariate_shift: AUROC of telling the two sets apart, with its interval; 0.5 is none.
        uncertainty: Mean epistemic uncertainty now less in the reference, with its interval.
        periods: Over time, where a column says when.
        finding: What all this says, in words.
        findings: The same, sentence by sentence.
        covariate_p: p-value that the two sets cannot be told apart.
        covariate_on: What the sets were told apart by: `texts` or `outputs`.
        outputs_shift: The same AUROC on outputs (log-odds), whatever `covariate_on` is.
        words_now: Words more typical of now.
        words_reference: Words more typical of the reference.
        uncertainty_name: The score behind `uncertainty`: `epistemic`, or `confidence` (one less
            the confidence) where a set has no epistemic uncertainty.
        novelty: Mean novelty now less in the reference, with its interval; `None` where a set has
            none.
        true_label_shift: p-value that the true classes are as frequent; `None` without labels.
        true_frequencies: Share of each true class by name: in the reference, and now.
        estimated_labels: Share of each true class now, estimated from predictions as if only the
            mix of classes had changed (black-box shift estimation); `None` where it cannot be.
        accuracy: Now less in the reference, with its interval; `None` without labels.
        gap: Confidence less accuracy, now less in the reference; above 0 is more over-confidence.
        trends: Over time, where a column says when.
        tests: By name, every p-value behind `findings`, adjusted by Holm's method.
    """

    rows: int
    reference_rows: int
    label_shift: float
    frequencies: Mapping[str, tuple[float, float]]
    covariate_shift: Interval
    uncertainty: Interval
    periods: tuple[Period, ...]
    finding: str
    findings: tuple[str, ...] = ()
    covariate_p: float = float("nan")
    covariate_on: str = ""
    outputs_shift: Interval | None = None
    words_now: tuple[str, ...] = ()
    words_reference: tuple[str, ...] = ()
    uncertainty_name: str = EPISTEMIC
    novelty: Interval | None = None
    true_label_shift: float | None = None
    true_frequencies: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    estimated_labels: Mapping[str, Interval] | None = None
    accuracy: Interval | None = None
    gap: Interval | None = None
    trends: tuple[Trend, ...] = ()
    tests: Mapping[str, float] = field(default_factory=dict)


def drift(
    now: Predictions,
    reference: Predictions,
    *,
    time: str | None = None,
    level: float = 0.95,
    max_rows: int = 1000,
    permutations: int = 499,
    seed: int = 0,
) -> Drift:
    """Compare rows with those of a reference, by the same model.

    Rows are taken to be independent of each other. All tests behind `findings` are adjusted by
    Holm's method, so that where nothing changed there is one at most once in `1 / (1 - level)`.

    Args:
        now: Rows under audit, labelled or not.
        reference: Rows that the model was checked on, not those it was trained on: a model is
            surer and better there, and that is no drift.
        time: Column of `now` that says when: dates, or numbers that grow with time.
        level: Coverage of the intervals.
        max_rows: Rows of either set, drawn by chance, that the classifier sees.
        permutations: Of the classifier test.
        seed: Of everything random.

    Raises:
        DataError: If the classes differ, a set has fewer than 20 rows, or `time` says no time.
        ConfigError: If a setting is out of range.
    """
    _check(now, reference, max_rows, permutations)
    check_level(level)
    rng = np.random.default_rng(seed)
    line = None if time is None else timeline(now, time)
    name = EPISTEMIC if have(EPISTEMIC, now, reference) else CONFIDENCE
    shift = homogeneity_p_value(_counts(now, now.predicted), _counts(now, reference.predicted), rng)
    outputs, texts = _told(now, reference, rng, max_rows, permutations, level)
    told = outputs if texts is None else texts
    uncertainty, p_uncertainty = mean_difference(
        now.score(name), reference.score(name), rng, level=level
    )
    tests = {"predicted classes": shift, "outputs": outputs.p_value, "uncertainty": p_uncertainty}
    if texts is not None:
        tests["texts"] = texts.p_value
    novelty = None
    if have(NOVELTY, now, reference):
        novelty, tests[NOVELTY] = mean_difference(
            now.score(NOVELTY), reference.score(NOVELTY), rng, level=level
        )
    true_shift, accuracy, gap = _with_labels(now, reference, tests, rng, level)
    trends = () if line is None else _trends(now, name, line, rng)
    tests |= {f"trend of {one.of}": one.p_value for one in trends}
    adjusted = dict(zip(tests, map(float, adjust(list(tests.values()))), strict=True))
    periods = () if line is None else periods_of(now, name, line, rng, level)
    facts = Facts(
        now, reference, name, told, outputs, uncertainty, novelty, accuracy, gap, trends, periods
    )
    estimated = _estimated(now, reference, rng, level)
    found = sentences(facts, adjusted, 1.0 - level, estimated)
    return Drift(
        rows=len(now),
        reference_rows=len(reference),
        label_shift=shift,
        frequencies=facts.predicted_shares,
        covariate_shift=told.auroc,
        uncertainty=uncertainty,
        periods=periods,
        finding=" ".join(found),
        findings=found,
        covariate_p=told.p_value,
        covariate_on="outputs" if texts is None else "texts",
        outputs_shift=outputs.auroc,
        words_now=told.now,
        words_reference=told.reference,
        uncertainty_name=name,
        novelty=novelty,
        true_label_shift=true_shift,
        true_frequencies=facts.true_shares,
        estimated_labels=estimated,
        accuracy=accuracy,
        gap=gap,
        trends=trends,
        tests=adjusted,
    )


def have(score: str, *sets: Predictions) -> bool:
    """Whether every set has a score."""
    return all(score in each.scores for each in sets)


def _check(now: Predictions, reference: Predictions, max_rows: int, permutations: int) -> None:
    if now.probabilities.shape[1] != reference.probabilities.shape[1] or (
        now.label_names and reference.label_names and now.label_names != reference.label_names
    ):
        raise DataError(
            f"The rows have the classes {', '.join(now.names)} and the reference "
            f"{', '.join(reference.names)}; a drift is between predictions of one model."
        )
    if min(len(now), len(reference)) < _FEWEST:
        raise DataError(
            f"There are {len(now)} rows and {len(reference)} of the reference; below {_FEWEST} "
            "nothing can be said about a drift."
        )
    if max_rows < _FEWEST or permutations < 19:
        raise ConfigError(
            f"max_rows is {max_rows} and permutations is {permutations}; they must be {_FEWEST} "
            "and 19, or more."
        )


def _counts(predictions: Predictions, classes: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.bincount(classes, minlength=predictions.probabilities.shape[1])


def _told(
    now: Predictions,
    reference: Predictions,
    rng: np.random.Generator,
    max_rows: int,
    permutations: int,
    level: float,
) -> tuple[Told, Told | None]:
    """By outputs, and by texts where both sets have them."""
    one, two = (_some(each, max_rows, rng) for each in (now, reference))
    outputs = tell_outputs_apart(
        one.probabilities, two.probabilities, rng, permutations=permutations, level=level
    )
    if one.texts is None or two.texts is None:
        return outputs, None
    return outputs, tell_texts_apart(
        one.texts, two.texts, rng, permutations=permutations, level=level
    )


def _some(predictions: Predictions, most: int, rng: np.random.Generator) -> Predictions:
    if len(predictions) <= most:
        return predictions
    return predictions.take(np.sort(rng.choice(len(predictions), size=most, replace=False)))


def _with_labels(
    now: Predictions,
    reference: Predictions,
    tests: dict[str, float],
    rng: np.random.Generator,
    level: float,
) -> tuple[float | None, Interval | None, Interval | None]:
    """Shift of the true classes, and changes of accuracy and of the gap; tests are added.

    Right and wrong are counts, so accuracy has an exact test, and an interval that is not empty
    where every row is right.
    """
    if now.labels is None or reference.labels is None:
        return None, None, None
    shift = homogeneity_p_value(_counts(now, now.labels), _counts(now, reference.labels), rng)
    accuracy = accuracy_difference(now.right, reference.right, level)
    gap, p_gap = mean_difference(
        now.confidence - now.right, reference.confidence - reference.right, rng, level=level
    )
    p_accuracy = accuracy_p_value(now.right, reference.right)
    tests |= {"true classes": shift, "accuracy": p_accuracy, "gap": p_gap}
    return shift, accuracy, gap


def _trends(
    now: Predictions, name: str, line: Timeline, rng: np.random.Generator
) -> tuple[Trend, ...]:
    found = [trend(name, now.score(name)[line.rows], line.ranks, rng)]
    if now.labels is not None:
        right = now.right[line.rows].astype(np.float64)
        found.append(trend("accuracy", right, line.ranks, rng))
    return tuple(found)


def _estimated(
    now: Predictions, reference: Predictions, rng: np.random.Generator, level: float
) -> dict[str, Interval] | None:
    if reference.labels is None:
        return None
    classes = now.probabilities.shape[1]
    table = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(table, (reference.predicted, reference.labels), 1)
    found = estimate_labels(_counts(now, now.predicted), table, rng, level=level)
    return None if found is None else dict(zip(now.names, found, strict=True))
