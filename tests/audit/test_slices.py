from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from posthoc_bhpeft.audit import metrics
from posthoc_bhpeft.audit.predictions import Predictions
from posthoc_bhpeft.audit.slices.grouping import group_values
from posthoc_bhpeft.audit.slices.measured import (
    LENGTH,
    OF_THE_LABEL,
    PREDICTED,
    TRUE,
    Slice,
    goes_with_label,
    slices,
)
from posthoc_bhpeft.audit.slices.significance import accuracy_p_value, adjust, calibration_p_value
from posthoc_bhpeft.audit.words import points
from posthoc_bhpeft.errors import ConfigError, DataError


def drawn(rows: int, seed: int, *, wrong: float = 0.0) -> Predictions:
    """Calibrated predictions; of group "b" a share gets a label by chance, which is bad for it."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet([0.7, 0.7, 0.7], size=rows)
    y = np.array([rng.choice(3, p=row) for row in p])
    group = rng.choice(["a", "b", "c"], size=rows, p=[0.6, 0.25, 0.15])
    spoilt = (group == "b") & (rng.random(rows) < wrong)
    y[spoilt] = rng.integers(3, size=spoilt.sum())
    columns = {
        "group": tuple(group.tolist()),
        "age": tuple(rng.integers(18, 80, rows).tolist()),
        "day": tuple(f"2024-03-{d:02d}" for d in rng.integers(1, 8, rows)),
    }
    texts = tuple("word " * n for n in rng.integers(1, 40, rows))
    return Predictions(p, y, label_names=("no", "so", "yes"), texts=texts, columns=columns)


def only(found: tuple[Slice, ...], column: str, value: str) -> Slice:
    (one,) = [s for s in found if (s.column, s.value) == (column, value)]
    return one


def test_figures_are_those_of_the_rows() -> None:
    rows = drawn(300, 0)
    one = only(slices(rows, ["group"]), "group", "b")
    inside = np.array(rows.columns["group"]) == "b"
    p, y = rows.probabilities[inside], rows.labels[inside]
    assert one.rows == inside.sum()
    assert one.accuracy.estimate == metrics.accuracy(p, y)
    assert one.nll == metrics.negative_log_likelihood(p, y)
    assert one.confidence == pytest.approx(p.max(axis=1).mean())
    assert one.others_accuracy == pytest.approx(rows.right[~inside].mean())
    assert one.gap is not None
    assert one.gap.estimate == pytest.approx(one.confidence - one.accuracy.estimate)


def test_all_tests_of_all_columns_are_one_family() -> None:
    rows = drawn(300, 1, wrong=0.5)
    found = slices(rows, ["group", "day"])
    accuracy, calibration = [], []
    for one in found:
        inside = np.array(rows.columns[one.column]) == one.value
        accuracy.append(accuracy_p_value(rows.right[inside], rows.right[~inside]))
        calibration.append(calibration_p_value(rows.confidence[inside], rows.right[inside]))
    assert len(found) == 3 + 7
    expected = adjust(accuracy + calibration)
    np.testing.assert_allclose([s.p_accuracy for s in found], expected[:10])
    np.testing.assert_allclose([s.p_calibration for s in found], expected[10:])


def test_false_alarms_are_rare_and_a_bad_group_is_found() -> None:
    """Over many sets: at most 5 % have a finding where there is none, nearly all the planted."""
    columns, sets = ["group", "age", "day", LENGTH, PREDICTED], 60
    quiet = [slices(drawn(300, seed), columns[:4]) for seed in range(sets)]
    alarms = sum(any(one.finding for one in found) for found in quiet)
    assert alarms <= 3 + 3 * np.sqrt(60 * 0.05 * 0.95)
    found = [slices(drawn(600, seed, wrong=0.8), columns) for seed in range(20)]
    seen = [only(one, "group", "b").finding for one in found]
    assert sum("badly served" in one and "over-confident" in one for one in seen) >= 18
    assert not any(only(one, "group", "a").finding.startswith("badly") for one in found)


def test_the_worst_come_first_and_findings_are_plain() -> None:
    found = slices(drawn(600, 0, wrong=0.9))
    assert [bool(s.finding) for s in found] == sorted([bool(s.finding) for s in found])[::-1]
    with_finding = [s.nll for s in found if s.finding]
    assert with_finding == sorted(with_finding, reverse=True)
    bad = only(found, "group", "b")
    accuracy, others = (round(100 * x) for x in (bad.accuracy.estimate, bad.others_accuracy))
    assert bad.gap is not None
    assert bad.finding == (
        f"badly served: {accuracy} % right, the others {others} %; "
        f"over-confident by {round(100 * bad.gap.estimate)} points"
    )


def test_under_confidence_is_a_finding_and_good_service_is_none() -> None:
    p = np.full((200, 2), [0.6, 0.4])
    rows = Predictions(p, np.zeros(200, dtype=np.int64), columns={"half": ("x", "y") * 100})
    assert {one.finding for one in slices(rows, ["half"])} == {"under-confident by 40 points"}
    y = np.where(np.arange(200) % 2 == 0, 0, np.arange(200) % 4 == 1).astype(np.int64)
    found = slices(Predictions(p, y, columns=rows.columns), ["half"], outcomes=["half"])
    assert only(found, "half", "x").finding == ""
    assert only(found, "half", "y").finding == "badly served: 50 % right, the others 100 %"


def test_built_in_groups() -> None:
    rows = drawn(400, 2)
    found = slices(rows, [PREDICTED, TRUE, LENGTH])
    assert [s.value for s in found if s.column == LENGTH]
    assert {s.value for s in found if s.column == PREDICTED} == {"no", "so", "yes"}
    yes = only(found, TRUE, "yes")
    assert yes.accuracy.estimate == pytest.approx((rows.predicted == 2)[rows.labels == 2].mean())
    assert {s.gap for s in found if s.column == TRUE} == {None}
    assert {s.p_calibration for s in found if s.column == TRUE} == {None}
    assert all(s.gap is not None for s in found if s.column != TRUE)


def test_classes_named_by_numbers_are_classes() -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(30), size=3000)
    found = slices(Predictions(p, p.argmax(axis=1)), [PREDICTED])
    assert len(found) == 30
    assert {s.value for s in found} == {str(c) for c in range(30)}


def test_a_column_that_tells_the_label_gets_no_calibration_test() -> None:
    rows = drawn(600, 3)
    reason = tuple("late" if y == 0 and i % 2 else "lost" if y == 0 else None
                   for i, y in enumerate(rows.labels))  # fmt: skip
    told = Predictions(rows.probabilities, rows.labels, columns={"reason": reason})
    found = slices(told, ["reason"])
    assert {s.value for s in found} == {"late", "lost", "missing"}
    assert {(s.p_calibration, s.gap, s.note) for s in found} == {(None, None, OF_THE_LABEL)}
    assert all(s.gap is not None for s in slices(told, ["reason"], outcomes=[]))
    assert {s.gap for s in slices(rows, ["day"], outcomes=["day"])} == {None}


@pytest.mark.parametrize(
    ("values", "labels", "expected"),
    [
        ("aabbcc", [0, 0, 1, 1, 2, 2], True),  # tells the label
        ("aaaacc", [0, 0, 1, 1, 2, 2], True),  # follows from it
        ("abccdd", [0, 0, 1, 2, 1, 2], True),  # tells whether it is class 0
        ("aabbab", [0, 1, 0, 1, 2, 2], False),
        ("aaaaaa", [0, 0, 1, 1, 2, 2], False),
        ("abcdef", [0, 1, 2, 3, 4, 5], True),
    ],
)
def test_what_goes_with_the_label(values: str, labels: list[int], expected: bool) -> None:
    assert goes_with_label(group_values(list(values)), np.array(labels)) is expected


def test_groups_of_all_rows_and_small_ones_are_left_out() -> None:
    rows = drawn(100, 4)
    odd: dict[str, tuple[Any, ...]] = {
        "same": ("x",) * 100,
        "id": tuple(f"u{i}" for i in range(100)),
    }
    odd["few"] = ("y",) * 95 + ("z",) * 5
    assert slices(Predictions(rows.probabilities, rows.labels, columns=odd), list(odd)) == (
        slices(Predictions(rows.probabilities, rows.labels, columns=odd), ["few"])
    )


def test_errors_say_what_to_do() -> None:
    rows = drawn(50, 5)
    with pytest.raises(
        DataError, match=r"no column 'airline' to slice by; there are 'group', 'age'"
    ):
        slices(rows, ["airline"])
    with pytest.raises(DataError, match=r"these have no labels.*drift"):
        slices(Predictions(rows.probabilities))
    with pytest.raises(ConfigError, match="min_rows is 1 and most is 10"):
        slices(rows, min_rows=1)
    with pytest.raises(ConfigError, match="correction is 'none'"):
        slices(rows, correction="none")
    with pytest.raises(ConfigError, match="level is 1"):
        slices(rows, level=1.0)


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.12, "12 points"),
        (-0.12, "12 points"),
        (0.004, "0.4 points"),
        (0.01, "1 point"),
        (0.11, "11 points"),
    ],
)
def test_points(share: float, text: str) -> None:
    assert points(share) == text
