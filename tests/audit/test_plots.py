from __future__ import annotations

import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.image import imread

from posthoc_bhpeft.audit import (
    metrics,
    reliability_diagram,
    risk_coverage_plot,
    stream_plot,
    uncertainty_plot,
)
from posthoc_bhpeft.audit.drift.periods import Period
from posthoc_bhpeft.audit.plots import (
    confidence_histogram,
    confusion_plot,
    periods_plot,
    slices_plot,
)
from posthoc_bhpeft.audit.plots.canvas import literal, shortened
from posthoc_bhpeft.audit.slices import Slice
from posthoc_bhpeft.errors import ConfigError, DataError

RNG = np.random.default_rng(0)
P = RNG.dirichlet([0.5, 0.5, 0.5], size=120)
Y = np.array([RNG.choice(3, p=row) for row in P])
BOTH = {"MAP": P, "Bayes": 0.8 * P + 0.2 / 3}


def texts(figure: Figure) -> str:
    return " ".join(
        item.get_text() for item in figure.findobj(match=lambda a: hasattr(a, "get_text"))
    )


def test_reliability_diagram_draws_the_bins_of_the_metric() -> None:
    figure = reliability_diagram(BOTH, Y, bins=6)
    expected = metrics.reliability(P, Y, bins=6, equal_mass=True)
    x, y = figure.axes[0].lines[1].get_data()
    np.testing.assert_array_equal(x, expected.confidence)
    np.testing.assert_array_equal(y, expected.accuracy)


def test_reliability_diagram_names_models_and_figures() -> None:
    shown = texts(reliability_diagram(BOTH, Y))
    assert "MAP" in shown
    assert "Bayes" in shown
    assert f"NLL {metrics.negative_log_likelihood(P, Y):.3f}" in shown


def test_risk_coverage_plot_draws_the_curve_of_the_metric() -> None:
    doubt = RNG.random(len(Y))
    figure = risk_coverage_plot(BOTH, Y, {"Bayes": doubt})
    lines = {line.get_label().split(":")[0]: line for line in figure.axes[0].lines}
    for name, scores in (("MAP", None), ("Bayes", doubt)):
        curve = metrics.risk_coverage(BOTH[name], Y, scores)
        np.testing.assert_allclose(lines[name].get_ydata(), 100 * curve.risk)


def test_uncertainty_plot_has_a_dot_a_row() -> None:
    right = P.argmax(1) == Y
    figure = uncertainty_plot(RNG.random(120), RNG.random(120), right)
    dots = [len(points.get_offsets()) for points in figure.axes[0].collections]
    assert dots == [right.sum(), (~right).sum()]


def test_a_picture_is_written_without_pyplot(tmp_path: Path) -> None:
    reliability_diagram(BOTH, Y).savefig(tmp_path / "plot.png")
    image = imread(tmp_path / "plot.png")
    assert image.shape[0] > 500
    assert image[..., :3].std() > 0.05


def test_missing_matplotlib_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"posthoc-bhpeft\[plots\]"):
        risk_coverage_plot(BOTH, Y)


def test_no_model_is_said() -> None:
    with pytest.raises(DataError, match="no model"):
        reliability_diagram({}, Y)


def drawn(figure: Figure) -> str:
    """What a reader sees: the words of the picture as written into an SVG."""
    written = StringIO()
    with rc_context({"svg.fonttype": "none"}):
        figure.savefig(written, format="svg")
    found = ElementTree.fromstring(written.getvalue()).iter("{http://www.w3.org/2000/svg}text")
    return "\n".join("".join(one.itertext()) for one in found)


DOLLARS = ["$5 # $6", "$$", "$x_$", "$10-$20", r"a\$b", "5 $"]


@pytest.mark.parametrize("name", DOLLARS)
def test_dollars_in_names_are_dollars(name: str) -> None:
    """Two of them would make a formula of what stands between, or an error."""
    known = Period(name, 10, interval(0.1), interval(0.8), interval(0.7))
    figures = [
        slices_plot([group(name)], title=name),
        confusion_plot(np.array([[5, 1], [2, 9]]), [name, "other"]),
        periods_plot([known, known]),
        stream_plot([name, "b"], {name: (0.5, 0.6)}),
        reliability_diagram({name: P, "other": P}, Y),
        risk_coverage_plot({name: P}, Y),
        risk_coverage_plot({"MAP": P}, Y, marks={name: 0.6}),
    ]
    for figure in figures:
        assert name in drawn(figure)
    assert f"airline: {name}" in drawn(figures[0]).split("\n")
    assert name in drawn(figures[0]).split("\n"), "the title"
    assert drawn(figures[1]).split("\n").count(name) == 2


def test_a_long_name_is_cut_before_its_dollars_are_marked() -> None:
    assert shortened("$" * 40, 10) == r"\$" * 7 + "..."
    assert literal("5 and 6") == "5 and 6"


SCORES = {"2023": (0.5, 0.75, 0.625), "2024": (None, 0.25, 1.0), "2025": (None, None, None)}


def test_stream_plot_has_a_line_a_round_and_their_mean() -> None:
    figure = stream_plot(list(SCORES), SCORES)
    *rounds, mean = figure.axes[0].lines
    for line, (name, values) in zip(rounds, SCORES.items(), strict=True):
        drawn = [None if np.isnan(y) else y / 100 for y in np.asarray(line.get_ydata())]
        assert drawn == list(values)
        assert str(line.get_label()).endswith(name)
    np.testing.assert_allclose(mean.get_ydata(), [50.0, 50.0, 81.25])
    assert len({line.get_color() for line in rounds}) == 3


def test_stream_plot_of_rounds_that_were_not_all_scored() -> None:
    figure = stream_plot(["a", "b"], {"b": (None, 0.5)})
    np.testing.assert_allclose(figure.axes[0].lines[-1].get_ydata(), [np.nan, 50.0])
    assert "2  b" in str(figure.axes[0].lines[0].get_label())


@pytest.mark.parametrize(
    ("scores", "message"), [({}, "nothing to draw"), ({"a": (0.5,)}, "1 values for 2 rounds")]
)
def test_stream_plot_refuses(scores: dict[str, tuple[float, ...]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        stream_plot(["a", "b"], scores)


def interval(middle: float, half: float = 0.05) -> metrics.Interval:
    return metrics.Interval(middle, middle - half, middle + half)


def group(value: str, finding: str = "") -> Slice:
    gap = interval(0.0)
    return Slice("airline", value, 50, interval(0.8), 0.8, gap, 0.5, 1.0, 1.0, finding)


def test_confidence_histogram_stacks_wrong_on_right() -> None:
    figure = confidence_histogram(P, Y)
    right = int((P.argmax(1) == Y).sum())
    assert f"right ({right})" in texts(figure)
    assert f"wrong ({len(Y) - right})" in texts(figure)
    total = sum(bar.get_height() for bar in figure.axes[0].containers[0])
    assert total == right


def test_confidence_histogram_without_labels() -> None:
    assert "all rows (120)" in texts(confidence_histogram(P, None))


def test_marks_stand_at_the_share_kept() -> None:
    figure = risk_coverage_plot({"MAP": P}, Y, marks={"at most 5 % wrong": 0.62})
    vertical = [line for line in figure.axes[0].lines if line.get_linestyle() == ":"]
    assert [line.get_xdata()[0] for line in vertical] == [62.0]
    assert "at most 5 % wrong" in texts(figure)
    assert "errors left" not in figure.axes[0].get_legend().get_texts()[0].get_text()


def test_uncertainty_plot_thins_all_groups_alike() -> None:
    right = np.arange(120) % 4 != 0
    figure = uncertainty_plot(RNG.random(120), RNG.random(120), right, most=40)
    dots = [len(points.get_offsets()) for points in figure.axes[0].collections]
    assert dots == [30, 10]
    assert "wrong (30)" in texts(figure)


def test_uncertainty_plot_without_labels() -> None:
    figure = uncertainty_plot(RNG.random(9), RNG.random(9), None)
    assert "all rows (9)" in texts(figure)


def test_slices_plot_has_an_interval_a_group_and_shows_findings() -> None:
    figure = slices_plot([group("a", "worse"), group("b")], overall=0.75)
    lines = figure.axes[0].lines
    np.testing.assert_allclose(lines[0].get_xdata(), [75.0, 85.0])
    assert lines[1].get_marker() != lines[3].get_marker()
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["airline: a", "airline: b"]


def test_periods_plot_has_accuracy_only_where_it_is_known() -> None:
    known = Period("2023", 10, interval(0.1), interval(0.8), interval(0.7))
    unknown = Period("2024", 10, interval(0.1), interval(0.8), None)
    assert "accuracy" in texts(periods_plot([known, known]))
    assert "accuracy" not in texts(periods_plot([known, unknown]))


def test_confusion_plot_counts_and_refuses_many_classes() -> None:
    counts = np.array([[5, 1], [2, 1234]])
    assert "1,234" in texts(confusion_plot(counts, ["no", "yes"]))
    with pytest.raises(DataError, match="13 classes are too many"):
        confusion_plot(np.eye(13, dtype=np.int64), [str(i) for i in range(13)])


@pytest.mark.parametrize(("draw", "what"), [(slices_plot, "group"), (periods_plot, "period")])
def test_nothing_to_draw_is_said(draw: Callable[[list[object]], Figure], what: str) -> None:
    with pytest.raises(DataError, match=f"no {what} to draw"):
        draw([])
