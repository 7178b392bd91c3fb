from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from scipy.stats import ttest_ind

from posthoc_bhpeft.audit.drift import drift
from posthoc_bhpeft.audit.drift.labelshift import estimate_labels
from posthoc_bhpeft.audit.drift.periods import timeline, trend
from posthoc_bhpeft.audit.drift.twosample import (
    auroc,
    homogeneity_p_value,
    mean_difference,
    tell_apart,
    tell_outputs_apart,
    tell_texts_apart,
)
from posthoc_bhpeft.audit.predictions import Predictions
from posthoc_bhpeft.errors import ConfigError, DataError

RNG = np.random.default_rng(0)
OLD, NEW = ["rates", "hold", "growth", "bank"], ["covid", "taper", "mask", "bank"]


def rows(count: int, seed: int, words: list[str] | None = None, wrong: float = 0.0) -> Predictions:
    """Calibrated predictions of three classes with texts and dates; some labels are spoilt."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet([0.5, 0.5, 0.5], size=count)
    y = np.array([rng.choice(3, p=row) for row in p])
    spoilt = rng.random(count) < wrong
    y[spoilt] = p[spoilt].argmin(axis=1)
    texts = tuple(" ".join(rng.choice(words or OLD, size=6)) for _ in range(count))
    days = tuple(f"{2013 + i}-0{rng.integers(1, 9)}-01" for i in np.arange(count) * 8 // count)
    doubt = {"epistemic": rng.gamma(2.0, 0.02, count)}
    return Predictions(p, y, doubt, ("no", "so", "yes"), texts, {"day": days})


def test_auroc_is_the_share_of_pairs_in_order() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(6, size=(15, 3)).astype(float)
    targets = (rng.random((15, 3)) < 0.4).astype(float)
    targets[:, 2] = 1.0
    for column in range(2):
        ones, zeros = (scores[targets[:, column] == t, column] for t in (1, 0))
        pairs = [(a > b) + 0.5 * (a == b) for a in ones for b in zeros]
        assert auroc(scores, targets)[column] == pytest.approx(np.mean(pairs))
    assert np.isnan(auroc(scores, targets)[2])


def test_many_counts_agree_with_scipys_chi_square() -> None:
    from scipy.stats import chi2_contingency

    one, two = np.array([60, 30, 10, 0]), np.array([50, 20, 30, 0])
    expected = chi2_contingency([one[:3], two[:3]], correction=False).pvalue
    found = homogeneity_p_value(one, two, np.random.default_rng(0))
    assert found == pytest.approx(expected)
    assert homogeneity_p_value(one[3:], two[3:], np.random.default_rng(0)) == 1.0


def test_few_counts_agree_with_all_permutations() -> None:
    labels = np.array([0] * 6 + [1] * 3 + [2])
    total = np.bincount(labels)
    expected = total * 4 / 10

    def off(one: np.ndarray) -> float:
        return float(((one - expected) ** 2 * (1 / expected + 1 / (total - expected))).sum())

    seen = np.array([1, 2, 1])
    every = [off(np.bincount(labels[list(c)], minlength=3)) for c in combinations(range(10), 4)]
    exact = np.mean([value >= off(seen) - 1e-9 for value in every])
    found = homogeneity_p_value(seen, total - seen, np.random.default_rng(0))
    # Three standard errors of 9,999 draws.
    assert found == pytest.approx(exact, abs=3 * np.sqrt(exact * (1 - exact) / 9_999) + 1e-4)


def test_mean_difference_is_as_wide_as_welchs_interval() -> None:
    rng = np.random.default_rng(1)
    one, two = rng.normal(1.0, 1.0, 400), rng.normal(0.7, 2.0, 300)
    found, p = mean_difference(one, two, rng, resamples=4000)
    error = np.sqrt(one.var() / 400 + two.var() / 300)
    assert found.estimate == pytest.approx(one.mean() - two.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.06)
    # Rows are dealt anew from the pool, so its spread decides, as in Student's test.
    expected = ttest_ind(one, two).pvalue
    assert p == pytest.approx(expected, abs=3 * np.sqrt(expected * (1 - expected) / 1999) + 1e-3)
    assert mean_difference(one, one, rng)[1] > 0.5


def test_the_p_value_of_means_is_that_of_all_permutations() -> None:
    one, two = np.array([0.0, 0.2, 0.3]), np.array([0.1, 0.9, 1.0, 1.4, 2.0])
    pooled = np.concatenate([one, two])
    centre = pooled.mean()
    far = [abs(pooled[list(chosen)].mean() - centre) for chosen in combinations(range(8), 3)]
    exact = np.mean(np.array(far) >= abs(one.mean() - centre) - 1e-12)
    for sets in ((one, two), (two, one)):
        _, p = mean_difference(*sets, np.random.default_rng(0), resamples=10)
        # Three standard errors of 1,999 draws.
        assert p == pytest.approx(exact, abs=3 * np.sqrt(exact * (1 - exact) / 1999) + 1e-3)


def test_what_differs_by_rounding_does_not_differ() -> None:
    """A mean of 30 equal scores and one of 1,000 of them differ in their last digit."""
    score = 1.0 - 0.97
    one, two = np.full(30, score), np.full(1000, score)
    assert one.mean() != two.mean()
    found, p = mean_difference(one, two, np.random.default_rng(0), resamples=50)
    assert (found.estimate, found.low, found.high, p) == (0.0, 0.0, 0.0, 1.0)
    late = trend("x", two, np.sort(np.random.default_rng(0).integers(9, size=1000)), RNG)
    assert (late.correlation, late.p_value) == (0.0, 1.0)


def test_equal_sets_are_told_apart_by_chance_alone() -> None:
    """The p-value is exact, so at most 10 % lie at or below 0.1; the interval holds 0.5."""
    p_values, held = [], []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(60, 4))
        told = tell_apart(x @ x.T, 25, rng, permutations=39)
        p_values.append(told.p_value)
        held.append(told.auroc.low <= 0.5 <= told.auroc.high)
    assert np.mean(np.array(p_values) <= 0.1) <= 0.1 + 3 * 0.03
    assert np.mean(held) >= 0.95 - 3 * 0.022


def test_different_sets_are_told_apart_as_well_as_they_can_be() -> None:
    """Two Gaussians a distance `d` apart: the best AUROC is Phi(d / sqrt 2)."""
    from statistics import NormalDist

    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 2))
    x[:200, 0] += 1.5
    told = tell_apart(x @ x.T, 200, rng, permutations=99)
    assert told.p_value == 0.01
    assert told.auroc.low < NormalDist().cdf(1.5 / np.sqrt(2)) < told.auroc.high
    assert told.auroc.high - told.auroc.low < 0.15


def test_texts_are_told_apart_by_words() -> None:
    one, two = rows(120, 0, NEW), rows(120, 1)
    assert one.texts is not None
    assert two.texts is not None
    told = tell_texts_apart(one.texts, two.texts, np.random.default_rng(0), permutations=39)
    assert told.auroc.estimate > 0.99
    assert 0.9 < told.auroc.low < told.auroc.high <= 1.0
    assert set(told.now) == set(NEW) - {"bank"}
    assert set(told.reference) == set(OLD) - {"bank"}


def test_texts_without_common_words_are_compared_by_letters() -> None:
    rng = np.random.default_rng(0)
    one, two = (
        ["".join(rng.choice(list(z), size=12)) for _ in range(40)] for z in ("甲乙丙", "乙丙丁")
    )
    told = tell_texts_apart(one, two, rng, permutations=39)
    assert told.auroc.estimate > 0.9
    assert told.now == ()


def test_outputs_that_only_spread_differently_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    sure, unsure = rng.dirichlet([0.2, 0.2], size=150), rng.dirichlet([5.0, 5.0], size=150)
    told = tell_outputs_apart(sure, unsure, rng, permutations=39)
    assert told.auroc.low > 0.7


def test_label_shift_is_solved_for() -> None:
    """Rows of each class are predicted at known rates: the estimate is the true mix."""
    rates = np.array([[0.8, 0.1, 0.2], [0.1, 0.7, 0.1], [0.1, 0.2, 0.7]])
    reference = np.round(rates * [1000, 2000, 500]).astype(np.int64)
    truth = np.array([0.1, 0.3, 0.6])
    now = np.round(rates @ truth * 1000).astype(np.int64)
    found = estimate_labels(now, reference, np.random.default_rng(0))
    assert found is not None
    assert [one.estimate for one in found] == pytest.approx(truth, abs=1e-12)
    assert all(one.low < share < one.high for one, share in zip(found, truth, strict=True))
    assert max(one.high - one.low for one in found) < 0.15


def test_label_shift_is_not_estimated_where_it_cannot_be() -> None:
    rng = np.random.default_rng(0)
    useless = np.array([[40, 40], [60, 60]])
    assert estimate_labels(np.array([5, 5]), useless, rng) is None
    assert estimate_labels(np.array([5, 5]), np.array([[40, 0], [60, 0]]), rng) is None


def test_no_drift_is_seldom_found_where_there_is_none() -> None:
    found = [drift(rows(60, 2 * s), rows(60, 2 * s + 1), time="day", permutations=99, seed=s)
             for s in range(30)]  # fmt: skip
    alarms = sum(min(one.tests.values()) < 0.05 for one in found)
    assert alarms <= 5  # 30 x 0.05 and three standard errors
    (quiet, *_) = [one for one in found if min(one.tests.values()) >= 0.05]
    low, high = quiet.covariate_shift.low, quiet.covariate_shift.high
    (sentence,) = quiet.findings
    assert sentence.startswith("9 tests show no drift of 60 rows from 60 of the reference. A ")
    assert f"between {low:.2f} and {high:.2f}, where 0.5 is not at all." in sentence


def sure(count: int, wrong: int) -> Predictions:
    """Every answer as sure as every other, the first ones wrong."""
    p = np.tile([0.97, 0.03], (count, 1))
    p[::2] = p[::2, ::-1]
    y = p.argmax(axis=1)
    y[:wrong] = 1 - y[:wrong]
    return Predictions(p, y)


def test_thirty_right_answers_are_no_drift() -> None:
    """As many as 40 % of such sets have no error at an accuracy of 97 %."""
    found = drift(sure(30, 0), sure(1000, 30))
    (sentence,) = found.findings
    assert sentence.startswith("6 tests show no drift of 30 rows from 1000 of the reference.")
    assert found.accuracy is not None
    assert found.accuracy.low < 0.0 < found.accuracy.estimate < found.accuracy.high


def test_few_rows_of_a_good_model_are_seldom_taken_for_drift() -> None:
    """Right in 97 %, and skewed scores: where all rows are right, resamples never vary."""

    def drawn(count: int, rng: np.random.Generator) -> Predictions:
        made = sure(count, 0)
        assert made.labels is not None
        wrong = rng.random(count) < 0.03
        score = {"epistemic": rng.gamma(0.5, 0.02, count), "novelty": rng.lognormal(0, 1, count)}
        return replace(made, labels=np.where(wrong, 1 - made.labels, made.labels), scores=score)

    alarms = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        now, reference = drawn(30, rng), drawn(500, rng)
        tests = drift(now, reference, permutations=19, max_rows=30, seed=seed).tests
        alarms += min(tests.values()) < 0.05
    assert alarms <= 4


def test_many_errors_among_few_rows_are_a_drift() -> None:
    found = drift(sure(40, 8), sure(1000, 30))
    assert found.findings[0].startswith("Accuracy fell from 97.0 % in the reference to 80.0 % (a")
    assert "17 points above accuracy now" in found.findings[1]


def test_what_changed_is_said_in_words() -> None:
    now, reference = rows(400, 0, NEW, wrong=0.4), rows(400, 1)
    now = replace(now, scores={"epistemic": now.scores["epistemic"] + 0.05})
    found = drift(now, reference, permutations=199)
    one, two = now.right.mean(), reference.right.mean()
    assert found.accuracy is not None
    assert found.accuracy.estimate == pytest.approx(one - two)
    assert found.findings[0].startswith(
        f"Accuracy fell from {100 * two:.1f} % in the reference to {100 * one:.1f} % (a change of -"
    )
    assert any("Confidence was" in s and "points above accuracy now" in s for s in found.findings)
    assert any("Epistemic uncertainty rose from 0.0" in s for s in found.findings)
    assert any("More often now: " in s and "'covid'" in s for s in found.findings)
    assert found.finding == " ".join(found.findings)
    assert found.covariate_on == "texts"
    assert found.covariate_shift.low > 0.9


@pytest.mark.parametrize(("shift", "way", "moved"), [(1.5, "less", "rose"), (-1.5, "more", "fell")])
def test_rows_unlike_those_trained_on_are_told_by_their_novelty(
    shift: float, way: str, moved: str
) -> None:
    rng = np.random.default_rng(3)
    now, reference = (
        replace(one, scores={**one.scores, "novelty": rng.gamma(9.0, 1.0, 400) + by})
        for one, by in ((rows(400, 0), shift), (rows(400, 1), 0.0))
    )
    found = drift(now, reference, permutations=99)
    means = [float(each.score("novelty").mean()) for each in (reference, now)]
    assert found.novelty is not None
    assert found.novelty.estimate == pytest.approx(means[1] - means[0])
    assert found.findings == (
        f"Rows are {way} like those trained on than before: novelty {moved} from {means[0]:.3g} to "
        f"{means[1]:.3g} on average.",
    )
    alone = replace(reference, scores={"epistemic": reference.scores["epistemic"]})
    assert drift(now, alone, permutations=99).novelty is None
    assert drift(now, alone, permutations=99).tests.keys() == found.tests.keys() - {"novelty"}


def test_without_labels_and_texts_outputs_and_classes_are_compared() -> None:
    reference = rows(400, 0)
    odd = rows(400, 1)
    tilted = odd.probabilities * [0.1, 1.0, 1.0]
    tilted /= tilted.sum(axis=1, keepdims=True)
    now = Predictions(tilted, label_names=odd.label_names)
    found = drift(now, reference, permutations=99)
    assert found.covariate_on == "outputs"
    assert found.covariate_shift == found.outputs_shift
    assert found.uncertainty_name == "confidence"
    assert (found.accuracy, found.gap, found.true_label_shift) == (None, None, None)
    before, after = (float((each.predicted == 0).mean()) for each in (reference, now))
    assert found.frequencies["no"] == (before, after)
    assert found.estimated_labels is not None
    text = f"'no' most: {100 * before:.1f} % in the reference, {100 * after:.1f} % now."
    assert any(text in sentence for sentence in found.findings)
    said = any("If nothing but the mix of classes changed" in s for s in found.findings)
    assert said == (found.tests["uncertainty"] >= 0.05)


def test_the_true_mix_is_estimated_aloud_unless_doubt_moved_too() -> None:
    reference, odd = rows(400, 0), rows(900, 1)
    kept = np.flatnonzero((odd.labels != 0) | (np.arange(900) % 4 == 0))
    now = replace(odd.take(kept), labels=None, texts=None)
    said = "If nothing but the mix of classes changed"
    assert said in drift(now, reference, permutations=99).finding
    doubting = replace(now, scores={"epistemic": now.scores["epistemic"] + 0.1})
    assert said not in drift(doubting, reference, permutations=99).finding


def test_periods_are_those_of_the_rows_and_a_trend_is_named() -> None:
    now = rows(400, 2)
    year = np.array([int(day[:4]) for day in now.columns["day"]])
    now = replace(now, scores={"epistemic": now.scores["epistemic"] + 0.02 * (year - 2013)})
    found = drift(now, rows(100, 3), time="day", permutations=99)
    assert [p.name for p in found.periods] == [str(y) for y in range(2013, 2021)]
    for period, y in zip(found.periods, range(2013, 2021), strict=True):
        inside = year == y
        assert period.rows == inside.sum()
        assert period.epistemic.estimate == pytest.approx(now.scores["epistemic"][inside].mean())
        assert period.epistemic.low < period.epistemic.estimate < period.epistemic.high
        assert period.accuracy is not None
        assert period.accuracy.estimate == pytest.approx(now.right[inside].mean())
    assert "Over time, 2013 to 2020, epistemic uncertainty rises" in found.finding


def test_trend_by_hand_and_rows_of_one_moment_stay_together() -> None:
    """Four moments: of 24 orders of them, two are as extreme as the one seen."""
    values = np.array([0.0, 0.1, 1.0, 2.0, 3.0])
    found = trend("accuracy", values, np.array([0, 0, 1, 2, 3]), np.random.default_rng(0))
    assert found.correlation > 0.9
    centred = np.bincount([0, 0, 1, 2, 3], weights=values - values.mean())
    from itertools import permutations

    ranks = np.arange(4) - 1.5
    every = [abs(np.array(order) @ centred) for order in permutations(ranks)]
    exact = np.mean(np.array(every) >= abs(ranks @ centred) - 1e-9)
    assert found.p_value == pytest.approx(exact, abs=3 * np.sqrt(exact * (1 - exact) / 1999) + 1e-3)
    assert (found.early, found.late) == (pytest.approx(0.05), pytest.approx(2.0))


def test_a_moment_of_many_rows_is_one_moment() -> None:
    """A hundred rows of one odd day among five days say little about time."""
    ranks = np.repeat(np.arange(5), 100)
    values = np.where(ranks == 4, 1.0, 0.0)
    assert trend("x", values, ranks, np.random.default_rng(0)).p_value > 0.1


def test_the_same_seed_gives_the_same() -> None:
    one, two = rows(80, 0), rows(80, 1)
    assert drift(one, two, permutations=19) == drift(one, two, permutations=19)
    found = [drift(one, two, permutations=19, max_rows=40, seed=s).covariate_shift for s in (1, 2)]
    assert found[0] != found[1]


def test_rows_without_a_time_are_left_out() -> None:
    day = ("", None, *rows(30, 0).columns["day"][2:])
    line = timeline(replace(rows(30, 0), columns={"day": day}), "day")
    assert line.rows.tolist() == list(range(2, 30))
    assert sorted(np.concatenate([g.rows for g in line.groups]).tolist()) == list(range(2, 30))


def test_errors_say_what_to_do() -> None:
    one = rows(40, 0)
    with pytest.raises(DataError, match="no column 'when' that says when; there are 'day'"):
        drift(one, one, time="when")
    with pytest.raises(DataError, match="neither dates nor numbers alone, such as 'soon'"):
        drift(replace(one, columns={"when": ("soon",) * 40}), one, time="when")
    with pytest.raises(DataError, match="classes no, so, yes and the reference a, b, c"):
        drift(one, replace(one, label_names=("a", "b", "c")))
    with pytest.raises(DataError, match="40 rows and 19 of the reference; below 20"):
        drift(one, one.take(range(19)))
    with pytest.raises(ConfigError, match="max_rows is 5 and permutations is 499"):
        drift(one, one, max_rows=5)
