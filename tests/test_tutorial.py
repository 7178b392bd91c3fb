"""The tutorial runs as it stands, only trained for less long."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.test_docs import ROOT, python_blocks


@pytest.mark.slow
def test_tutorial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs" / "tutorial.md"
    scope: dict[str, object] = {}
    for line, block in python_blocks(page):
        short = block.replace("num_train_epochs=10", "max_steps=3")
        exec(compile("\n" * line + short, str(page), "exec"), scope)
    said = capsys.readouterr().out
    assert "360 240 ('dissatisfied', 'mixed', 'satisfied')" in said
    assert "Bayes: accuracy" in said
    assert (tmp_path / "reliability.png").stat().st_size > 10_000
    assert (tmp_path / "runs/tutorial/bayes/adapter_model.safetensors").is_file()
