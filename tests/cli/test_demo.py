"""The demonstration: its data, and a short run of the whole on real weights."""

from __future__ import annotations

import json

import pytest

from posthoc_bhpeft.cli.output import Output
from posthoc_bhpeft.demo import run_demo, satisfaction
from posthoc_bhpeft.folders import DEMO, check_output
from posthoc_bhpeft.training import TrainingSettings


def test_the_messages_have_three_named_classes():
    data = satisfaction()
    assert data.label_names == ("dissatisfied", "mixed", "satisfied")
    assert len(data) == len(set(data.texts)) == 600


@pytest.mark.slow
def test_a_short_demonstration(tmp_path, capsys):
    import sys

    settings = TrainingSettings(epochs=1, batch_size=32, max_length=16)
    out = tmp_path / "out"
    figures = run_demo(out, seed=0, show=Output(False, False, sys.stdout), settings=settings)
    assert figures["reloaded"]["largest_difference"] == 0.0
    assert figures["bayes"]["accuracy"] == figures["map"]["accuracy"]
    for name in ("reliability.png", "risk_coverage.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    page = (out / "report" / "report.html").read_text(encoding="utf-8")
    assert "240 rows" in page
    assert "MAP" in page
    assert json.loads((out / "results.json").read_text(encoding="utf-8"))["map"] == figures["map"]
    text = capsys.readouterr().out
    assert "least certain" in text
    assert "in the message" in text
    # A second run knows the folder of the first one, so it may replace it.
    check_output(out, overwrite=True, kind=DEMO)
