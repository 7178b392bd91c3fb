from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from posthoc_bhpeft.audit import (
    metrics,
    reliability_diagram,
    risk_coverage_plot,
    stream_plot,
    uncertainty_plot,
)
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
