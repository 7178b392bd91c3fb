"""Files of predictions, for `bhpeft audit`: there is no model, and none is needed."""

from __future__ import annotations

from posthoc_bhpeft.audit.files import read_predictions
from posthoc_bhpeft.audit.predictions import Predictions
from posthoc_bhpeft.audit.regression.files import read_real_predictions
from posthoc_bhpeft.audit.regression.predictions import RealPredictions
from posthoc_bhpeft.cli.asked import Asked, Ready, is_file, label, predicts_numbers
from posthoc_bhpeft.data.rows import shuffled
from posthoc_bhpeft.errors import ConfigError


def of_files(asked: Asked) -> Ready:
    """Predictions that are there already; a model would be needed for anything further.

    Raises:
        ConfigError: If something needs a model, or is compared that cannot be.
        DataError: If a file cannot be read.
    """
    check_needs_no_model(asked)
    regression = predicts_numbers(asked.subject)
    rivals = {}
    if asked.other is not None:
        check_comparable(asked, regression)
        rivals[label(asked.other, asked.subject)] = drawn(read(asked.other, regression), asked)
    outside = None if asked.outside is None else read_predictions(asked.outside, labels=False)
    reference = None if asked.reference is None else read_predictions(asked.reference)
    subject = drawn(read(asked.subject, regression), asked)
    name = label(asked.subject, asked.other)
    return Ready(name, subject, None, rivals, outside, reference)


def check_needs_no_model(asked: Asked) -> None:
    """Raise where an option needs a model.

    Raises:
        ConfigError: With those that do.
    """
    needs_model = {
        "--data": asked.rows.source,
        "--split": asked.split,
        "--label": asked.label,
        "--compare": asked.rivals,
        "--ensemble": asked.ensemble,
        "--held-out": asked.held_out,
        "--save-review": asked.save_review,
    }
    if given := [name for name, value in needs_model.items() if value]:
        raise ConfigError(
            f"{asked.subject!r} is a file of predictions, so there is no model to predict with: "
            f"leave out {', '.join(given)}, or audit the checkpoint."
        )


def check_comparable(asked: Asked, regression: bool) -> None:
    """Raise where the other one is no file, or is about classes where this is about numbers.

    Raises:
        ConfigError: If so.
    """
    assert asked.other is not None
    if not is_file(asked.other):
        raise ConfigError(
            f"{asked.subject!r} is a file of predictions and {asked.other!r} is none. Compare two "
            "files about the same rows (bhpeft predict writes one), or two checkpoints."
        )
    if predicts_numbers(asked.other) != regression:
        kinds = ("numbers", "classes") if regression else ("classes", "numbers")
        raise ConfigError(
            f"{asked.subject!r} holds predictions of {kinds[0]} and {asked.other!r} of {kinds[1]}. "
            "Compare files about the same rows, made for the same question."
        )


def read(place: str, regression: bool) -> Predictions | RealPredictions:
    """One file."""
    return read_real_predictions(place) if regression else read_predictions(place)


def drawn(
    predictions: Predictions | RealPredictions, asked: Asked
) -> Predictions | RealPredictions:
    """At most so many rows, in their old order; the same ones of two files about the same rows."""
    if asked.max_rows is None or asked.max_rows >= len(predictions):
        return predictions
    if asked.max_rows < 1:
        raise ConfigError(f"--max-rows is {asked.max_rows}; it must be at least 1.")
    return predictions.take(sorted(shuffled(range(len(predictions)), asked.seed)[: asked.max_rows]))
