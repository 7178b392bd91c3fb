"""The examples run, each in a process of its own, with a tiny model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SAID = {
    "quickstart.py": "Saved and loaded: probabilities differ by 0",
    "stream.py": "Opened again: the same scores: True",
    "with_trainer.py": "Bayesian",
    "third_party_lora.py": "blocks: lora, head",
}


@pytest.mark.parametrize("name", SAID)
def test_example(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), "--tiny"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert SAID[name] in done.stdout
    assert not list(tmp_path.iterdir()), "an example left something behind"


def test_every_example_is_run_and_short() -> None:
    scripts = {p.name: len(p.read_text().splitlines()) for p in EXAMPLES.glob("*.py")}
    assert set(SAID) == scripts.keys() - {"rows.py", "tiny.py"}
    assert max(scripts.values()) <= 100
