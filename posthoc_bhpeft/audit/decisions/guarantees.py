r"""Thresholds that hold for rows not yet seen, from finitely many labelled ones.

**An error rate.** Order the rows from the most certain; `k_m` of the first `m` are wrong. To answer
every row with a score below the next one's, `s_(m+1)`, the hypothesis to reject is "such answers
are wrong more often than `r`", with the exact p-value `P(Bin(m, r) <= k_m)` (Geifman and El-Yaniv
2017, https://arxiv.org/abs/1705.08500). Many `m` are tried, so they are tested in a fixed order,
from the more certain downwards, and the first that fails ends it: then no correction is needed
(fixed-sequence testing; Learn then Test, Angelopoulos et al. 2021, https://arxiv.org/abs/2110.01052).

Why that holds though thresholds are scores of the same rows: let `t` be the first threshold beyond
which the true rate exceeds `r`. A promise can be broken only if the walk passes the first row
beyond `t`. Given how many rows lie below `t`, they are independent draws from all such rows, wrong
with probability `r` or more, so that the test there passes with probability `1 - confidence` at
most. (Where the rate falls back to `r` and exceeds it again, the rows between are wrong with
probability `r` on average, and the same holds.) Equal scores are put in random order, and the
threshold is then moved to the last place where no two equal scores are torn apart; that place was
tested too.

A walk that begins with too few rows fails by bad luck, so it begins where a rate of `r / 2` would
pass. With many rows several walks begin, the others further down, each with its share of
`1 - confidence`, and the longest counts: one flaw among the most certain rows then does no harm.

**A share.** If `k` is large enough, at most `q` of all rows score above the `k`-th smallest of `n`
scores: the share below it is at least Beta(k, n + 1 - k) distributed, whatever the scores, ties
included.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from posthoc_bhpeft.audit.arrays import Floats
from posthoc_bhpeft.errors import ConfigError

_WALKS = 4
_SPACING = 3
_SEARCH = 10_000_000


def threshold_for_errors(
    scores: Floats, wrong: NDArray[np.bool_], rate: float, confidence: float, seed: int = 0
) -> float | None:
    """The largest threshold under which at most `rate` of the answers are wrong, or `None`.

    Args:
        scores: `(N,)`, growing with doubt.
        wrong: `(N,)`, whether each answer is wrong.
        rate: Wanted share of wrong answers.
        confidence: Probability, over the draw of the rows, that the promise holds.
        seed: Of the order of equal scores.

    Returns:
        Rows with a score at or below it are answered; infinity answers all.
    """
    order = certain_first(scores, seed)
    ranked, errors = scores[order], np.cumsum(wrong[order].astype(np.int64))
    starts = walk_starts(len(scores), rate, confidence)
    level = (1.0 - confidence) / max(len(starts), 1)
    answered = max((walk(ranked, errors, rate, level, start) for start in starts), default=0)
    if answered == 0:
        return None
    if answered == len(ranked):
        return math.inf
    return float(np.nextafter(ranked[answered], -math.inf))


def certain_first(scores: Floats, seed: int) -> NDArray[np.int64]:
    """Positions `(N,)` by growing score; equal ones in random order."""
    chance = np.random.default_rng(seed).random(len(scores))
    found: NDArray[np.int64] = np.lexsort((chance, scores)).astype(np.int64)
    return found


def walk(ranked: Floats, errors: NDArray[np.int64], rate: float, level: float, start: int) -> int:
    """How many of the most certain rows may be answered, 0 for none.

    Args:
        ranked: Scores `(N,)`, ascending.
        errors: Wrong ones among the first `m`, for `m = 1 .. N`.
        rate: Wanted.
        level: Probability of a wrong promise.
        start: The first number of rows tested.
    """
    passed = below_rate(errors[start - 1 :], np.arange(start, len(ranked) + 1), rate, level)
    last = start - 1 + (len(passed) if passed.all() else int(passed.argmin()))
    apart = np.append(ranked[1:] > ranked[:-1], True)
    places = np.flatnonzero(apart[start - 1 : last])
    return 0 if len(places) == 0 else start + int(places[-1])


def below_rate(
    errors: NDArray[np.int64], rows: NDArray[np.int64], rate: float, level: float
) -> NDArray[np.bool_]:
    """Whether so few errors among so many rows are evidence of a rate of at most `rate`."""
    from scipy.stats import binom

    found: NDArray[np.bool_] = binom.cdf(errors, rows, rate) <= level
    return found


def walk_starts(rows: int, rate: float, confidence: float) -> list[int]:
    """Where walks begin: known before any label is, so that they may share the level."""
    for walks in range(_WALKS, 1, -1):
        first = rows_for_rate(0.5 * rate, rate, (1 - confidence) / walks)
        if rows >= first * _SPACING ** (walks - 1):
            return [math.ceil(start) for start in np.geomspace(first, rows, walks).round(6)]
    fewest = rows_without_error(rate, confidence)
    if rows < fewest:
        return []
    return [min(rows_for_rate(0.5 * rate, rate, 1 - confidence), max(fewest, rows // 2))]


def rows_without_error(rate: float, confidence: float) -> int:
    """Rows that must all be right before any rate can be promised: `(1 - r)^m <= 1 - c`."""
    return math.ceil(math.log1p(-confidence) / math.log1p(-rate))


def rows_for_rate(seen: float, rate: float, level: float) -> int:
    """The fewest rows, `seen` of them wrong, that are evidence of a rate of at most `rate`.

    Found by bisection: a little more than the very fewest, since errors are whole numbers.
    """
    low, high = 0, 1
    while not passes(seen, high, rate, level):
        low, high = high, 2 * high
        if high > _SEARCH:
            return high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(seen, middle, rate, level) else (middle, high)
    return high


def passes(seen: float, rows: int, rate: float, level: float) -> bool:
    """Whether `seen` of so many rows wrong, rounded up, is evidence of at most `rate`."""
    errors = np.array([math.ceil(seen * rows - 1e-9)])
    return bool(below_rate(errors, np.array([rows]), rate, level)[0])


def threshold_for_share(scores: Floats, share: float, confidence: float) -> float | None:
    """The smallest order statistic above which at most `share` of all rows score, or `None`.

    `P(F(s_(k)) >= 1 - q) >= P(Bin(n, 1 - q) <= k - 1)`, with equality if no scores are equal
    (Wilks 1941, https://doi.org/10.1214/aoms/1177731788).
    """
    from scipy.stats import binom

    rows = len(scores)
    enough = binom.cdf(np.arange(rows), rows, 1.0 - share) >= confidence
    if not enough.any():
        return None
    return float(np.sort(scores)[int(enough.argmax())])


def check_open(name: str, value: float) -> None:
    """Raise unless a share or a probability lies strictly between 0 and 1.

    Raises:
        ConfigError: With its name.
    """
    if not 0.0 < value < 1.0:
        raise ConfigError(f"{name} is {value}; it must lie between 0 and 1, such as 0.05 for 5 %.")


def percent(value: float) -> str:
    """`0.05` as `5 %`."""
    return f"{100.0 * value:.3g} %"
