"""Whether two sets of rows could come from the same source: counts, means, and a classifier."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from posthoc_bhpeft.audit.arrays import Floats
from posthoc_bhpeft.audit.metrics import Interval

_FOLDS, _RIDGE, _WORDS = 5, 1.0, 6
_SMALLEST_EXPECTED = 5.0
# Part of the largest weight that a word needs to be named.
_TYPICAL = 0.2
_CHUNK = 2**22
# Part of the largest value below which a difference of means is rounding: equal rows summed in
# another order differ by some 1e-16 of it.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Told:
    """How well a classifier tells rows of now from rows of the reference.

    Attributes:
        auroc: On rows it was not trained on, with its interval; 0.5 is not at all.
        p_value: Of the permutation test that it cannot.
        now: Words more typical of now, where texts were compared.
        reference: Words more typical of the reference.
    """

    auroc: Interval
    p_value: float
    now: tuple[str, ...] = ()
    reference: tuple[str, ...] = ()


def homogeneity_p_value(
    now: NDArray[np.int64], reference: NDArray[np.int64], rng: np.random.Generator
) -> float:
    """Test that two sets have the same shares of C classes, from their counts `(C,)` each.

    Pearson's chi-square; where a cell expects fewer than 5 rows its null distribution comes from
    9,999 permutations of the rows, `p = (1 + #{at least as large}) / 10,000`.
    """
    from scipy.stats import chi2

    seen = (now + reference) > 0
    one, two = now[seen], reference[seen]
    if len(one) < 2:
        return 1.0
    total = one + two
    expected = total * one.sum() / total.sum()
    statistic = _chi_square(one, total, expected)
    if min(expected.min(), (total - expected).min()) >= _SMALLEST_EXPECTED:
        return float(chi2.sf(statistic, len(total) - 1))
    drawn = rng.multivariate_hypergeometric(total, int(one.sum()), size=9_999)
    larger = _chi_square(drawn, total, expected) >= statistic * (1.0 - 1e-12)
    return float((1 + larger.sum()) / (1 + len(drawn)))


def _chi_square(one: NDArray[np.int64], total: NDArray[np.int64], expected: Floats) -> Floats:
    """Both rows of the table; the second misses what the first has too much."""
    off = (one - expected) ** 2
    found: Floats = (off / expected + off / (total - expected)).sum(axis=-1)
    return found


def mean_difference(
    now: Floats,
    reference: Floats,
    rng: np.random.Generator,
    *,
    resamples: int = 2000,
    permutations: int = 1999,
    level: float = 0.95,
) -> tuple[Interval, float]:
    """Mean of now less that of the reference: percentile bootstrap interval and p-value.

    For the interval both sets are drawn anew with replacement. The p-value is that of a permutation
    test, so it is exact however few rows a set has: a set whose rows happen to be all alike does
    not vary over resamples, and the bootstrap would take it for certain. What it tests is that
    both sets have one distribution: where their spreads differ, it may find more than their means.

    Args:
        now: Values `(N,)`.
        reference: Values `(M,)`.
        rng: Source of chance.
        resamples: Of the interval.
        permutations: Of the test.
        level: Coverage of the interval.
    """
    drawn = resampled_means(now, rng, resamples) - resampled_means(reference, rng, resamples)
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(drawn, [tail, 1.0 - tail])
    rounding = _rounding(now, reference)
    found = (now.mean() - reference.mean(), low, high)
    return (
        Interval(*(0.0 if abs(value) <= rounding else float(value) for value in found)),
        _permutation_p_value(now, reference, rng, permutations),
    )


def _permutation_p_value(
    now: Floats, reference: Floats, rng: np.random.Generator, permutations: int
) -> float:
    """Test that both sets have the same distribution, by how far their means are apart.

    All rows are pooled and dealt to the two sets anew, `p = (1 + #{at least as far}) /
    (1 + permutations)`. The rest follows from the smaller set, so only that one is dealt.
    """
    pooled = np.concatenate([now, reference])
    pooled = pooled - pooled.mean()
    few = min(len(now), len(reference))
    seen = pooled[: len(now)].sum() if few == len(now) else pooled[len(now) :].sum()
    dealt = [
        pooled[rng.choice(len(pooled), size=few, replace=False, shuffle=False)].sum()
        for _ in range(permutations)
    ]
    as_far = np.abs(dealt) >= abs(seen) - few * _rounding(now, reference)
    return float((1 + as_far.sum()) / (1 + permutations))


def _rounding(*sets: Floats) -> float:
    """What two means of these values may differ by though nothing does."""
    return _ROUNDING * max(float(np.abs(values).max()) for values in sets)


def resampled_means(values: Floats, rng: np.random.Generator, resamples: int) -> Floats:
    """Means `(resamples,)` of rows drawn with replacement."""
    size = max(1, _CHUNK // len(values))
    parts = [
        values[rng.integers(len(values), size=(min(size, resamples - done), len(values)))].mean(1)
        for done in range(0, resamples, size)
    ]
    return np.concatenate(parts)


def tell_texts_apart(
    now: Sequence[str],
    reference: Sequence[str],
    rng: np.random.Generator,
    *,
    permutations: int = 499,
    level: float = 0.95,
) -> Told:
    """Classifier two-sample test on TF-IDF of words and pairs of words (see `tell_apart`).

    Texts that no two share a word of, as in languages without spaces, are compared by letters.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts, words = [*now, *reference], True
    try:
        vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
        features = vectorizer.fit_transform(texts)
    except ValueError:  # what scikit-learn raises where no word is left
        words = False
        vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), lowercase=False)
        features = vectorizer.fit_transform([f" {text} " for text in texts])
    kernel = np.asarray((features @ features.T).todense(), dtype=np.float64)
    told = tell_apart(kernel, len(now), rng, permutations=permutations, level=level)
    if not words:
        return told
    is_now = _targets(len(now), len(texts))
    weights = features.T @ _fitted(kernel, (is_now - is_now.mean())[:, None])[:, 0]
    names, order = vectorizer.get_feature_names_out(), np.argsort(weights)
    least = _TYPICAL * np.abs(weights).max()
    return Told(
        told.auroc,
        told.p_value,
        now=_single([str(names[i]) for i in order[::-1] if weights[i] > least]),
        reference=_single([str(names[i]) for i in order if weights[i] < -least]),
    )


def _single(terms: Sequence[str]) -> tuple[str, ...]:
    """The first few that are one word; of a pair, one has mostly been named already."""
    return tuple([term for term in terms if " " not in term][:_WORDS])


def tell_outputs_apart(
    now: Floats,
    reference: Floats,
    rng: np.random.Generator,
    *,
    permutations: int = 499,
    level: float = 0.95,
) -> Told:
    """The same on log-odds, `log p - mean_c log p`, by a Gaussian kernel of median width.

    Args:
        now: Probabilities `(N, C)`.
        reference: Probabilities `(M, C)`.
        rng: Source of chance.
        permutations: See `tell_apart`.
        level: Coverage.
    """
    from sklearn.metrics.pairwise import euclidean_distances

    logs = np.log(np.clip(np.concatenate([now, reference]), 1e-12, None))
    odds = logs - logs.mean(axis=1, keepdims=True)
    spread = odds.std(axis=0)
    distances = euclidean_distances(odds / np.where(spread > 0, spread, 1.0), squared=True)
    width = float(np.median(distances)) or 1.0
    kernel = np.exp(-distances / width)
    return tell_apart(kernel, len(now), rng, permutations=permutations, level=level)


def tell_apart(
    kernel: Floats,
    rows: int,
    rng: np.random.Generator,
    *,
    permutations: int = 499,
    level: float = 0.95,
) -> Told:
    """Classifier two-sample test with every row scored by a classifier that did not see it.

    (Lopez-Paz and Oquab, 2017, arXiv:1610.06545, with AUROC for accuracy.) The classifier is
    kernel ridge regression on which set a row is of. It is linear in that target, so all
    `permutations` of it are trained anew for little more than one, and the p-value is exact: folds
    that share training rows do it no harm. The AUROC is the mean over 5 folds; its interval is
    Newcombe's (2006, method 5), which takes the folds' classifiers as given and is never empty.

    Args:
        kernel: `(N, N)`, the rows of now first; made without looking at which set a row is of.
        rows: How many are of now.
        rng: Source of chance: the folds and the permutations.
        permutations: How many.
        level: Coverage of the interval.
    """
    size = len(kernel)
    folds = np.array_split(rng.permutation(size), _FOLDS)
    is_now = _targets(rows, size)
    targets = np.stack([is_now, *(rng.permutation(is_now) for _ in range(permutations))], axis=1)
    aurocs = _cross_fitted(kernel, targets, folds)
    p = (1 + (aurocs[1:] >= aurocs[0] - 1e-12).sum()) / (1 + permutations)
    spread = float(aurocs[1:].std() / np.sqrt(_variance(0.5, rows, size - rows)))
    interval = _auroc_interval(float(aurocs[0]), rows, size - rows, level, max(1.0, spread))
    return Told(interval, float(p))


def _targets(rows: int, size: int) -> Floats:
    return (np.arange(size) < rows).astype(np.float64)


def _cross_fitted(kernel: Floats, targets: Floats, folds: Sequence[NDArray[np.int64]]) -> Floats:
    """Mean AUROC over the folds for every column of targets."""
    found = []
    for fold in folds:
        rest = np.setdiff1d(np.arange(len(kernel)), fold)
        centred = targets[rest] - targets[rest].mean(axis=0)
        scores = kernel[np.ix_(fold, rest)] @ _fitted(kernel[np.ix_(rest, rest)], centred)
        found.append(auroc(scores, targets[fold]))
    means: Floats = np.nanmean(found, axis=0)
    return means


def _fitted(kernel: Floats, targets: Floats) -> Floats:
    """Weights of the training rows, `(K + ridge I)^-1 y`."""
    from scipy.linalg import cho_factor, cho_solve

    found: Floats = cho_solve(cho_factor(kernel + _RIDGE * np.eye(len(kernel))), targets)
    return found


def auroc(scores: Floats, targets: Floats) -> Floats:
    """Chance that a row of target 1 scores above one of target 0, ties half; `(N, B)` to `(B,)`.

    NaN where a column has one target only.
    """
    from scipy.stats import rankdata

    ones = targets.sum(axis=0)
    pairs = ones * (len(targets) - ones)
    above = (rankdata(scores, axis=0) * targets).sum(axis=0) - ones * (ones + 1) / 2
    found: Floats = np.where(pairs > 0, above / np.where(pairs > 0, pairs, 1.0), np.nan)
    return found


def _auroc_interval(area: float, one: int, two: int, level: float, stretch: float) -> Interval:
    """Values whose standard error, at that value, reaches the estimate (Newcombe, 2006)."""
    z = NormalDist().inv_cdf(0.5 + level / 2.0) * stretch

    def off(value: float) -> float:
        return abs(value - area) - z * math.sqrt(_variance(value, one, two))

    return Interval(area, _border(off, 0.0, area), _border(off, 1.0, area))


def _variance(area: float, one: int, two: int) -> float:
    """Of a mean over independent folds, both classes exponential (Hanley and McNeil, 1982)."""
    mean = (one + two) / 2.0
    ends = (1.0 - area) / (2.0 - area) + area / (1.0 + area)
    # Pairs are made inside a fold only, so there is one in _FOLDS of them.
    return area * (1.0 - area) * (_FOLDS + (mean - _FOLDS) * ends) / (one * two)


def _border(off: Callable[[float], float], outside: float, inside: float) -> float:
    """Where `off` turns negative on the way in, by bisection."""
    for _ in range(50):
        middle = (outside + inside) / 2.0
        outside, inside = (outside, middle) if off(middle) <= 0 else (middle, inside)
    return inside
