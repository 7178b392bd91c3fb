from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from posthoc_bhpeft.audit import metrics
from posthoc_bhpeft.audit.metrics import calibration
from posthoc_bhpeft.audit.metrics.catalogue import DETECTION, GAUSSIAN, METRICS, value_of
from posthoc_bhpeft.audit.metrics.detection import Scored
from posthoc_bhpeft.audit.metrics.gaussian import DrawnGaussians, Gaussians
from posthoc_bhpeft.audit.metrics.rows import Resampled, Rows
from posthoc_bhpeft.audit.predictions import Predictions
from posthoc_bhpeft.audit.regression.figures import REGRESSION
from posthoc_bhpeft.errors import DataError
from tests.audit.drawn import Pair, pair_of, pairs, weights_and_copies

ALL = (*METRICS, *DETECTION, *REGRESSION)
PAGE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"

# Their bins are fixed by the rows, so copies of rows would have other bins.
OWN_BINS = {"ece_equal_mass", "mce"}


@pytest.mark.parametrize("pair", pairs().values(), ids=pairs())
@pytest.mark.parametrize("metric", METRICS, ids=lambda m: m.name)
def test_a_weight_is_a_copy(metric, pair: Pair) -> None:
    """The figure of a resample is that of the rows it stands for, copied out."""
    p, y = pair
    weights, copies = weights_and_copies(len(y), 4)
    found = metric.values(Resampled(Rows.checked(p, y), weights))
    if metric.name in OWN_BINS:
        assert ((found >= 0) & (found <= 1)).all()
        return
    expected = [metric.values(Rows.checked(p[i], y[i]).whole)[0] for i in copies]
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8)


def test_bins_of_equal_mass_stay_those_of_the_rows() -> None:
    p, y = pair_of(200, 3)
    rows = Rows.checked(p, y)
    weights, copies = weights_and_copies(200, 3)
    edges = rows.mass_bins.edges
    for name, combine in (("ece_equal_mass", np.sum), ("mce", np.max)):
        metric = next(m for m in METRICS if m.name == name)
        found = metric.values(Resampled(rows, weights))
        for value, i in zip(found, copies, strict=True):
            bin_of = np.clip(np.searchsorted(edges, p[i].max(1)) - 1, 0, 14)
            gaps = [
                abs((p[i].max(1) - (p[i].argmax(1) == y[i]))[bin_of == b].mean())
                * ((bin_of == b).mean() if name == "ece_equal_mass" else 1.0)
                for b in np.unique(bin_of)
            ]
            assert value == pytest.approx(combine(gaps))


def test_a_weight_is_a_copy_for_detection_and_regression() -> None:
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(size=60).round(1), rng.normal(0.5, size=40).round(1)
    weights, copies = weights_and_copies(60, 4)
    others, other_copies = weights_and_copies(40, 4, seed=1)
    drawn = Scored(inside, outside, weights, others)
    for metric in DETECTION:
        expected = [
            metric.values(Scored.whole(inside[i], outside[j]))[0]
            for i, j in zip(copies, other_copies, strict=True)
        ]
        np.testing.assert_allclose(metric.values(drawn), expected, rtol=1e-12)
    rows = Gaussians.checked(inside, rng.gamma(1.0, size=60) + 0.1, rng.normal(size=60))
    for metric in GAUSSIAN:
        expected = [
            metric.values(
                DrawnGaussians.whole(
                    Gaussians(rows.mean[i], rows.deviation[i], rows.targets[i]),
                )
            )[0]
            for i in copies
        ]
        found = metric.values(DrawnGaussians(rows, weights))
        np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_figures_are_those_of_the_plain_functions() -> None:
    p, y = pair_of(300, 4, sharpness=2.0)
    found = {m.name: value_of(m, Predictions(p, y)) for m in METRICS}
    expected = {
        "accuracy": metrics.accuracy(p, y),
        "macro_f1": metrics.macro_f1(p, y),
        "nll": metrics.negative_log_likelihood(p, y),
        "brier": metrics.brier_score(p, y),
        "brier_calibration": metrics.brier_parts(p, y).calibration,
        "brier_refinement": metrics.brier_parts(p, y).refinement,
        "ece": metrics.expected_calibration_error(p, y),
        "ece_equal_mass": metrics.expected_calibration_error(p, y, equal_mass=True),
        "smooth_ece": metrics.smooth_calibration_error(p, y),
        "mce": calibration.maximum_calibration_error(p, y),
        "classwise_ece": metrics.classwise_calibration_error(p, y),
        "aurc": metrics.risk_coverage(p, y).area,
        "augrc": metrics.risk_coverage(p, y).generalized_area,
        "accuracy_at_80": metrics.accuracy_at_coverage(p, y, 0.80),
        "accuracy_at_90": metrics.accuracy_at_coverage(p, y, 0.90),
        "accuracy_at_95": metrics.accuracy_at_coverage(p, y, 0.95),
        "errors_removed_at_10": metrics.errors_after_rejection(p, y).errors_removed,
    }
    assert found == pytest.approx(expected)


def test_only_ranking_looks_at_the_score() -> None:
    p, y = pair_of(300, 4)
    given = Predictions(p, y, scores={"oracle": (p.argmax(1) != y).astype(float)})
    moved = {m.name for m in METRICS if value_of(m, given, "oracle") != value_of(m, given)}
    ranked = {"aurc", "augrc", "errors_removed_at_10"}
    assert moved == ranked | {f"accuracy_at_{share}" for share in (80, 90, 95)}


@pytest.mark.parametrize("metric", ALL, ids=lambda m: m.name)
def test_every_metric_is_described(metric) -> None:
    assert re.fullmatch(r"[a-z0-9_]+", metric.name)
    assert metric.definition.endswith(".")
    assert metric.formula
    assert metric.source.startswith("https://")
    assert (metric.target is not None) == (metric.better == "target")
    assert (metric.excess is None) or metric.biased


def test_names_are_unique() -> None:
    names = [metric.name for metric in ALL]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("metric", ALL, ids=lambda m: m.name)
def test_every_metric_has_a_section_of_its_name(metric) -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert f"\n### {metric.name}\n" in page
    section = page.split(f"\n### {metric.name}\n")[1].split("\n#")[0]
    assert metric.source in section


def test_values_are_shown_for_people() -> None:
    by_name = {metric.name: metric for metric in METRICS}
    assert by_name["accuracy"].show(0.8765) == "87.6 %"
    assert by_name["nll"].show(0.12345) == "0.1235"
    assert by_name["errors_removed_at_10"].show(float("nan")) == "n/a"


def test_without_labels_nothing_is_measured() -> None:
    p, _ = pair_of(10, 3)
    with pytest.raises(DataError, match="no labels"):
        value_of(METRICS[0], Predictions(p))
