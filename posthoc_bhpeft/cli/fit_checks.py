"""What `bhpeft fit` refuses before any work: options that do not go together, or say nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from posthoc_bhpeft.cli.options import GroupChoice, PriorChoice
from posthoc_bhpeft.data import RowSettings, TextData, choose_rows
from posthoc_bhpeft.errors import BhpeftError, ConfigError
from posthoc_bhpeft.training import TrainingRecord

READ_BY = (
    *("text_column", "text_pair_column", "label_column", "label_columns", "label_separator"),
    *("response_column", "drop_unlabelled"),
)
"""Settings of `RowSettings` that say how rows are read, each an option of the same name."""

_FOUND = {"text_column", "text_pair_column", "label_column"}
"""Those of them that are looked for where nobody names them."""


def check_as_trained(record: TrainingRecord | None, named: RowSettings) -> None:
    """Raise where rows are to be read otherwise than in the training, and no data are named.

    Raises:
        ConfigError: With the options that tell so.
    """
    # A folder that records no rows needs --data whatever else is said.
    if record is None or record.rows is None:
        return
    recorded = record.rows
    others = [
        name
        for name in READ_BY
        if (value := getattr(named, name)) and value != getattr(recorded, name)
    ]
    if others and not _reads_the_same(record, {name: getattr(named, name) for name in others}):
        options = ", ".join("--" + name.replace("_", "-") for name in others)
        raise ConfigError(
            f"{options}: without --data the rows are those of the training, read as they were "
            f"then. Name the data too (--data {recorded.source}, or other training rows), or leave "
            f"{options} out."
        )


def _reads_the_same(record: TrainingRecord, settings: Mapping[str, Any]) -> bool:
    """Whether these are the columns of the training, where it found them by itself."""
    assert record.rows is not None
    if not settings.keys() <= _FOUND or any(getattr(record.rows, name) for name in settings):
        return False
    try:
        chosen = choose_rows(replace(record.rows, **settings))
    except BhpeftError:
        return False
    return chosen.train.digest == record.train_digest


def check_held_out(validation: TextData | None) -> None:
    """Raise where the training learnt all of its rows, so that none is held out.

    Raises:
        ConfigError: With the ways to have some, or to do without.
    """
    if validation is None:
        raise ConfigError(
            "--prior held-out needs rows that were not learnt, and the training kept none "
            "(--no-early-stopping): it learnt all rows, whichever of them were read again. Train "
            "anew without --no-early-stopping, or leave --prior out: --prior left-out needs none."
        )


def check_prior(choice: PriorChoice, precision: float | None, per: GroupChoice) -> None:
    """Raise where options do not go together, before any work.

    Raises:
        ConfigError: With those that do.
    """
    if (choice is PriorChoice.fixed) != (precision is not None):
        raise ConfigError("--prior fixed and --precision VALUE go together.")
    grouped = (PriorChoice.evidence, PriorChoice.visible)
    if per is not GroupChoice.model and choice not in grouped:
        raise ConfigError(
            f"--per {per.value} needs --prior evidence or visible; the others choose one precision."
        )
