"""`ReviewRule`: which rows go to a human, made once by an audit and kept with the posterior.

The threshold was found on labelled rows for one score of one predictive, and means nothing for
another; so the rule records which, and whoever applies it is checked against that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from posthoc_bhpeft.checkpoints import read_json, write_json
from posthoc_bhpeft.errors import CheckpointError, ConfigError
from posthoc_bhpeft.predictive import UNCERTAINTIES, Prediction
from posthoc_bhpeft.sets import APS, LAC, RAPS, SetRule
from posthoc_bhpeft.settings import decode, encode

REVIEW_FILE = "review.json"
FORMAT_VERSION = 1
SCORES = ("confidence", *UNCERTAINTIES)
"""What a rule may be about: one less the largest probability, or an uncertainty."""


@dataclass(frozen=True)
class ReviewRule:
    """Rows with a score above a threshold go to a human; the others are answered.

    Attributes:
        score: One of `SCORES`.
        threshold: In the units of the score; infinite where no row needs a review.
        promise: What holds, in words.
        rows: Labelled rows that the threshold was found on.
        digest: SHA-256 of those rows.
        predictive: `repr` of the predictive that the scores came from.
        sets: Makes prediction sets too, where they were asked for.
    """

    score: str
    threshold: float
    promise: str
    rows: int
    digest: str
    predictive: str
    sets: SetRule | None = None

    def __post_init__(self) -> None:
        if self.score not in SCORES:
            raise ConfigError(
                f"A rule about the score {self.score!r} cannot be applied: a prediction has "
                f"{', '.join(SCORES)}. Make the decision on one of those."
            )
        if math.isnan(self.threshold):
            raise ConfigError("The threshold of a review rule is NaN; give a number.")

    def check_predictive(self, predictive: Any) -> None:
        """Raise unless this is the predictive that the rule was made with.

        Raises:
            ConfigError: With both.
        """
        if repr(predictive) != self.predictive:
            raise ConfigError(
                f"The review rule was made with {self.predictive}, and these predictions come from "
                f"{predictive!r}: its threshold means nothing for them. Predict with the former, "
                "or audit again with the latter."
            )

    def apply(self, prediction: Prediction) -> Prediction:
        """The prediction with `review` `(N,)` and, where the rule makes sets, `sets` `(N, C)`.

        Raises:
            ConfigError: If these are no class probabilities.
        """
        probabilities = class_probabilities(prediction)
        review = self.doubt(prediction, probabilities) > self.threshold
        sets = None if self.sets is None else self.sets.sets(probabilities)
        device = prediction.logits.device
        return replace(
            prediction, review=review.to(device), sets=None if sets is None else sets.to(device)
        )

    def doubt(self, prediction: Prediction, probabilities: Tensor) -> Tensor:
        """The score of each row, `(N,)`, float64 on the CPU.

        Raises:
            ConfigError: If the predictions have no such score.
        """
        if self.score == "confidence":
            return 1.0 - probabilities.amax(1)
        if self.score not in prediction.uncertainties:
            raise ConfigError(
                f"The review rule is about the score {self.score!r}, and these predictions have "
                f"{', '.join(prediction.uncertainties)}. Predict with Linearized(), or audit again "
                "with another score."
            )
        return prediction.uncertainties[self.score].detach().cpu().double()


def class_probabilities(prediction: Prediction) -> Tensor:
    """Probabilities `(N, C)` in float64, made to sum to one by the very arithmetic of an audit.

    So a row on the threshold falls on the same side in both.

    Raises:
        ConfigError: If these are no class probabilities.
    """
    if prediction.probabilities is None or prediction.multilabel:
        raise ConfigError(
            "A review rule is about one class a row; these are predictions of a regression or of "
            "several answers. Predict without review."
        )
    raw = prediction.probabilities.detach().cpu().double().numpy()
    return torch.from_numpy(raw / raw.sum(axis=1, keepdims=True))


def write_rule(folder: Path, rule: ReviewRule, posterior: str) -> None:
    """Write review.json.

    Args:
        folder: Of the posterior.
        rule: What to write.
        posterior: SHA-256 of the posterior.json that the rule belongs to.

    Raises:
        CheckpointError: If the method of the sets is the user's own.
    """
    if rule.sets is not None and type(rule.sets.method) not in (LAC, APS, RAPS):
        raise CheckpointError(
            f"{rule.sets.method!r} cannot be saved. Supported: LAC(), APS(), RAPS(). Save with one "
            "of those, or without sets."
        )
    content = {
        "format_version": FORMAT_VERSION,
        "posterior": posterior,
        **{name: getattr(rule, name) for name in ("score", "promise", "rows", "digest")},
        "predictive": rule.predictive,
        "threshold": as_json(rule.threshold),
        "review_if": review_if(rule.score, rule.threshold),
        "sets": None if rule.sets is None else describe_sets(rule.sets),
    }
    write_json(folder / REVIEW_FILE, content)


def review_if(score: str, threshold: float) -> str:
    """Which rows go to a human, as a condition that cannot be misread: "epistemic > 0.25".

    Args:
        score: By name; of "confidence" the threshold is on one less the largest probability.
        threshold: With all its digits in the text, so that both say the same.
    """
    if math.isinf(threshold):
        return "never" if threshold > 0 else "always"
    named = "1 - max probability" if score == "confidence" else score
    return f"{named} > {float(threshold)!r}"


def describe_sets(sets: SetRule) -> dict[str, Any]:
    """A rule of sets as JSON data."""
    return {
        "method": encode(sets.method),
        "thresholds": [as_json(limit) for limit in sets.thresholds],
        "promise": sets.promise,
    }


def read_rule(folder: Path, posterior: str) -> ReviewRule | None:
    """The rule of a folder, or `None` where there is none.

    Args:
        folder: Of the posterior.
        posterior: SHA-256 of its posterior.json.

    Raises:
        CheckpointError: If the file is damaged, of another format, or of another posterior.
    """
    path = folder / REVIEW_FILE
    if not path.is_file():
        return None
    content = read_json(path)
    remedy = f"Remove {REVIEW_FILE}, or make it again with `bhpeft audit`."
    if content.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {content.get('format_version')!r}; this version of "
            f"posthoc-bhpeft reads {FORMAT_VERSION}. Update the package. {remedy}"
        )
    if content.get("posterior") != posterior:
        raise CheckpointError(
            f"{path} belongs to another posterior than the one beside it: its threshold would "
            f"promise nothing here. {remedy}"
        )
    try:
        return parsed(content)
    except (CheckpointError, ConfigError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} does not make sense: {type(error).__name__} {error}. It was edited, or cut "
            f"off. {remedy}"
        ) from error


def parsed(content: Mapping[str, Any]) -> ReviewRule:
    """The rule inside the JSON data."""
    sets = content["sets"]
    return ReviewRule(
        score=text(content["score"]),
        threshold=as_number(content["threshold"]),
        promise=text(content["promise"]),
        rows=int(content["rows"]),
        digest=text(content["digest"]),
        predictive=text(content["predictive"]),
        sets=None if sets is None else parsed_sets(sets),
    )


def parsed_sets(content: Mapping[str, Any]) -> SetRule:
    """The rule of sets inside the JSON data.

    Raises:
        TypeError: If the method is none of ours.
    """
    method = decode(content["method"], more=(LAC, APS, RAPS))
    if not isinstance(method, (LAC, APS, RAPS)):
        raise TypeError(f"{method!r} makes no sets")
    limits = tuple(as_number(limit) for limit in content["thresholds"])
    return SetRule(method, limits, text(content["promise"]))


def text(value: Any) -> str:
    """A text, or a `TypeError`."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r} should be a text")
    return value


def as_json(value: float) -> float | None:
    """A number as JSON has it: `null` for infinity, that is no limit."""
    return None if value == math.inf else value


def as_number(value: Any) -> float:
    """The number that `as_json` wrote."""
    return math.inf if value is None else float(value)
