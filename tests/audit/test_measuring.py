from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from posthoc_bhpeft.audit.metrics import Interval
from posthoc_bhpeft.audit.metrics.bootstrap import draw_weights
from posthoc_bhpeft.audit.metrics.catalogue import DETECTION, GAUSSIAN, METRICS
from posthoc_bhpeft.audit.metrics.measuring import (
    compare,
    detect,
    drawn_figures,
    measure,
    measure_gaussian,
)
from posthoc_bhpeft.audit.metrics.rows import Resampled, Rows
from posthoc_bhpeft.audit.predictions import Predictions
from posthoc_bhpeft.errors import ConfigError, DataError
from tests.audit.drawn import pair_of, pairs


def predictions(rows: int = 300, classes: int = 3, **options: float) -> Predictions:
    p, y = pair_of(rows, classes, **options)
    return Predictions(p, y, scores={"noise": np.random.default_rng(0).random(rows)})


def only(names: tuple[str, ...], given: Predictions, resamples: int) -> dict[str, Interval]:
    """What `measure` says of some metrics; the others take most of its time."""
    rows = Rows.of(given)
    metrics = tuple(metric for metric in METRICS if metric.name in names)
    pieces = (Resampled(rows, w) for w in draw_weights(len(rows), resamples, None))
    found = drawn_figures(metrics, rows.whole, pieces)
    return {m.name: m.interval(found[m.name], rows.whole, 0.95) for m in metrics}


def test_some_metrics_are_measured_as_all_are() -> None:
    names = ("accuracy", "ece", "classwise_ece", "errors_removed_at_10")
    whole = measure(predictions(), resamples=30)
    assert only(names, predictions(), 30) == {name: whole[name] for name in names}


def test_every_metric_has_an_interval_that_holds_it() -> None:
    found = measure(predictions(), resamples=50)
    assert list(found) == [metric.name for metric in METRICS]
    for metric in METRICS:
        one = found[metric.name]
        assert metric.least <= one.low <= one.estimate <= one.high <= metric.most


def test_an_interval_of_a_mean_is_the_normal_one() -> None:
    given = predictions(2000)
    found = only(("accuracy",), given, 1000)["accuracy"]
    half = 1.96 * given.right.std() / math.sqrt(2000)
    assert found.low == pytest.approx(given.right.mean() - half, abs=0.15 * half)
    assert found.high == pytest.approx(given.right.mean() + half, abs=0.15 * half)


CALIBRATION = ("brier_calibration", "ece", "ece_equal_mass", "smooth_ece", "mce", "classwise_ece")


def test_calibration_errors_of_a_calibrated_model_reach_down_to_zero() -> None:
    """At least nine in ten, where 97.5 % are meant; percentiles would never get there."""
    reached = []
    for seed in range(12):
        found = only(CALIBRATION, predictions(400, seed=seed), 200)
        reached.append([found[name].low <= 1e-12 for name in CALIBRATION])
    assert np.mean(reached) >= 0.9


def test_calibration_errors_of_an_overconfident_model_do_not() -> None:
    found = measure(predictions(2000, sharpness=3.0), resamples=100)
    assert all(found[name].low > 0 for name in CALIBRATION)


def test_the_share_of_a_few_errors_that_doubt_finds_is_not_made_certain() -> None:
    """Three errors on average, half of them in the least certain tenth."""
    held, by_chance = [], []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        doubt = rng.random(300)
        wrong = rng.random(300) < np.where(doubt > 0.9, 0.05, 0.005 / 0.9)
        c = 1 - 0.4 * doubt
        given = Predictions(np.stack([c, 1 - c], axis=1), wrong.astype(int))
        found = only(("errors_removed_at_10",), given, 20)["errors_removed_at_10"]
        if found.known:
            held.append(found.low <= 0.5 <= found.high)
            by_chance.append(found.high <= 0.1)
    assert np.mean(held) >= 0.95 - 3 * 0.022
    assert sum(by_chance) <= 1


def test_chance_is_explicit() -> None:
    given = predictions()
    one, two = (measure(given, resamples=20)["nll"] for _ in range(2))
    other = measure(given, resamples=20, generator=torch.Generator().manual_seed(5))["nll"]
    assert one == two
    assert other != one
    assert other.estimate == one.estimate


@pytest.mark.parametrize("pair", pairs().values(), ids=pairs())
def test_odd_data_have_figures_or_none(pair) -> None:
    found = measure(Predictions(*pair), resamples=20)
    for name, one in found.items():
        if name == "errors_removed_at_10" and not one.known:
            assert Predictions(*pair).right.all() or len(pair[1]) == 1
        else:
            assert np.isfinite([one.estimate, one.low, one.high]).all(), name


def test_no_error_leaves_nothing_to_remove() -> None:
    p, y = np.tile([0.9, 0.1], (20, 1)), np.zeros(20, dtype=int)
    found = measure(Predictions(p, y), resamples=20)
    assert not found["errors_removed_at_10"].known
    assert found["accuracy"].estimate == 1.0
    assert found["aurc"].estimate == 0.0


def test_a_model_does_not_differ_from_itself() -> None:
    given = predictions()
    found = compare(given, given, resamples=30)
    assert list(found) == [metric.name for metric in METRICS]
    assert all(one.estimate == 0.0 and one.low <= 0.0 <= one.high for one in found.values())
    assert (found["nll"].low, found["nll"].high) == (0.0, 0.0)


def test_a_comparison_is_the_subject_less_the_rival() -> None:
    subject, rival = predictions(1000), predictions(1000, sharpness=3.0)
    found = compare(subject, rival, resamples=100)
    mine, theirs = (measure(one, resamples=1) for one in (subject, rival))
    for name, one in found.items():
        assert one.estimate == pytest.approx(mine[name].estimate - theirs[name].estimate)
    assert found["nll"].high < 0
    assert found["ece"].high < 0
    assert found["accuracy"].estimate == 0.0


def test_a_pair_tells_more_than_two_intervals() -> None:
    subject, rival = predictions(500), predictions(500, sharpness=1.2)
    paired = compare(subject, rival, resamples=200)["nll"]
    apart = measure(rival, resamples=200)["nll"]
    assert paired.high - paired.low < 0.5 * (apart.high - apart.low)


def test_each_side_is_ranked_by_its_own_score() -> None:
    given = predictions()
    found = compare(given, given, score="noise", resamples=20)
    assert found["aurc"].estimate > 0
    back = compare(given, given, rival_score="noise", resamples=20)
    assert back["aurc"].estimate == pytest.approx(-found["aurc"].estimate)


def test_only_the_same_rows_are_compared() -> None:
    given = predictions()
    with pytest.raises(DataError, match="300 rows and the rival 299"):
        compare(given, given.take(range(299)))
    with pytest.raises(DataError, match="labels of the subject and the rival differ"):
        compare(given, given.take(range(299, -1, -1)))


def test_detection_has_every_score_that_both_have() -> None:
    rng = np.random.default_rng(0)
    inside = Predictions(
        pair_of(120, 3)[0],
        scores={"epistemic": rng.normal(0, 1, 120), "only": np.zeros(120)},
    )
    outside = Predictions(pair_of(250, 3)[0], scores={"epistemic": rng.normal(1, 1, 250)})
    found = detect(inside, outside, resamples=150)
    assert list(found) == ["confidence", "epistemic"]
    assert list(found["epistemic"]) == [metric.name for metric in DETECTION]
    area = found["epistemic"]["auroc"]
    # The standard error of AUROC by Hanley and McNeil (1982).
    a, n, m = area.estimate, 120, 250
    q1, q2 = a / (2 - a), 2 * a**2 / (1 + a)
    error = math.sqrt((a * (1 - a) + (m - 1) * (q1 - a**2) + (n - 1) * (q2 - a**2)) / (n * m))
    assert area.high - area.low == pytest.approx(2 * 1.96 * error, rel=0.25)
    assert found["confidence"]["auroc"].low < 0.5 < found["confidence"]["auroc"].high
    swapped = detect(outside, inside, resamples=5)
    assert swapped["epistemic"]["auroc"].estimate == pytest.approx(1 - a)


def test_a_regression_is_measured() -> None:
    rng = np.random.default_rng(0)
    mean = rng.normal(size=800)
    targets = mean + rng.normal(size=800)
    found = measure_gaussian(mean, np.ones(800), targets, resamples=100)
    assert list(found) == [metric.name for metric in GAUSSIAN]
    assert found["interval_coverage"].low < 0.9 < found["interval_coverage"].high
    assert found["crps"].estimate == pytest.approx(1 / math.sqrt(math.pi), abs=0.05)
    assert found["pit_error"].low == 0.0
    narrow = measure_gaussian(mean, np.full(800, 0.25), targets, resamples=100)
    assert narrow["pit_error"].low > 0
    assert narrow["interval_coverage"].high < 0.9


def test_wrong_settings_are_named() -> None:
    given = predictions()
    with pytest.raises(ConfigError, match="level"):
        measure(given, level=95)
    with pytest.raises(ConfigError, match="resamples"):
        measure(given, resamples=0)
    with pytest.raises(DataError, match="no score 'epistemic'"):
        measure(given, score="epistemic")
    with pytest.raises(DataError, match="no labels"):
        measure(Predictions(given.probabilities))
