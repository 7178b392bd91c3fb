"""How many rows a promise would take, where there are too few for it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from posthoc_bhpeft.audit.arrays import Floats
from posthoc_bhpeft.audit.decisions.guarantees import (
    passes,
    percent,
    rows_without_error,
    walk_starts,
)

_STEP, _MOST = 1.1, 1000
"""Numbers of rows are tried in steps of a tenth, up to a thousand times as many as there are."""


def missing_rows(
    scores: Floats, wrong: NDArray[np.bool_], rate: float, confidence: float
) -> tuple[int | None, str]:
    """About how many rows would be needed to promise an error rate, and that in words.

    It is the number from which `threshold_for_errors` is as likely as not to promise something: of
    so many rows, those that its first test looks at would be wrong as often as the same share of
    these rows. How often that is, is not read off a few lucky rows: `k` of `m` wrong counts as
    `(k + 1/2) / (m + 1)` (Jeffreys, 1946), so that ten right answers are no rate of 0.

    Args:
        scores: `(N,)`, growing with doubt.
        wrong: `(N,)`, whether each answer is wrong.
        rate: Wanted share of wrong answers.
        confidence: Of the promise.

    Returns:
        The number, `None` where more rows would not help; and the reason.
    """
    rows, fewest = len(scores), rows_without_error(rate, confidence)
    what = (
        f"at most {percent(rate)} of the automatic answers wrong with probability "
        f"{percent(confidence)}"
    )
    if rows < fewest:
        return fewest, (
            f"{rows} rows are too few to promise {what}: at least {fewest} are needed, and more "
            "unless the most certain of them are all right."
        )
    errors = np.cumsum(wrong[np.argsort(scores, kind="stable")].astype(np.int64))
    rates = (errors + 0.5) / (np.arange(rows) + 2.0)
    tried = ((n, _looked_at(rates, n, rate, confidence)) for n in _more(rows))
    # The best part of them, of those large enough to promise anything.
    best = int(rates[fewest - 1 :].argmin()) + fewest
    needed, size = next(((n, m) for n, m in tried if m), (None, best))
    if needed is None:
        return None, (
            f"{what[0].upper()}{what[1:]} cannot be promised. {_seen(errors, size)}, so more rows "
            "would not help: a better model would, or another score."
        )
    return needed, (
        f"{rows} rows are too few to promise {what}. {_seen(errors, size)}; if others are like "
        f"them, about {needed} rows are needed."
    )


def _seen(errors: NDArray[np.int64], size: int) -> str:
    wrong = int(errors[size - 1])
    are = "is" if wrong == 1 else "are"
    return f"Of the {size} most certain of {len(errors)} rows {wrong} {are} wrong"


def _more(rows: int) -> Iterator[int]:
    """Numbers of rows above this one."""
    tried = rows + 1
    while tried <= _MOST * rows:
        yield tried
        tried = int(np.ceil(_STEP * tried))


def _looked_at(rates: Floats, rows: int, rate: float, confidence: float) -> int:
    """How many of these rows stand for those whose first test would pass; 0 where none would."""
    starts = walk_starts(rows, rate, confidence)
    level = (1.0 - confidence) / max(len(starts), 1)
    for start in starts:
        size = round(start / rows * len(rates))
        if size and passes(float(rates[size - 1]), start, rate, level):
            return size
    return 0
