"""Parts of the benchmarks of cost that need no run: medians, lines of tables, differences."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
CHANGED = {
    "classes": {"n_classes"},
    "tokens of a row": {"tokens"},
    "rank of LoRA": {"rank"},
    "width": {"width", "kept"},
    "batches of a fit": {"batches"},
}


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmarks, which are no package."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def scaling() -> Any:
    return importlib.import_module("scaling")


def test_a_ratio_is_the_median_over_rounds_of_the_ratio_within_a_round(scaling: Any) -> None:
    seconds = {"fit": [2.0, 9.0, 8.0], "training": [1.0, 3.0, 8.0]}
    # Medians of each alone would give 8 / 3.
    found = scaling.medians(seconds, [("fit", "training"), ("missing", "training")])
    assert found == ["2.00", "–"]


def test_an_axis_changes_what_it_is_named_after_and_nothing_else(scaling: Any) -> None:
    assert scaling.AXES.keys() == CHANGED.keys()
    for axis, cells in scaling.AXES.items():
        fields = [vars(cell) for cell in cells.values()]
        changed = {key for one in fields for key in one if one[key] != fields[0][key]}
        assert changed == CHANGED[axis]


def test_a_line_of_a_whole_set_says_what_a_row_took() -> None:
    full_size = importlib.import_module("full_size")

    def line(step: str, *taken: Any) -> str:
        return full_size.table({"a": {step: full_size.Step(*taken)}}).splitlines()[-1]

    printed = {"rows": 2000, "metrics": {"accuracy": 0.5, "nll": 1.25}}
    found = line("predict", 30.0, 1024.4, printed)
    assert found == "| a | predict | 2000 | 30 | 15.0 | 1024 | 0.5000 | 1.2500 |"
    trained = line("train", 267.0, 1302.0, {"train_rows": 15000})
    assert trained == "| a | train | 15000 | 267 | 17.8 | 1302 | – | – |"
    assert line("train", 3.0, 10.0, {}) == "| a | train | – | 3 | – | 10 | – | – |"


def test_processes_are_compared_relative_to_the_largest_number() -> None:
    processes = importlib.import_module("processes")
    one = {"w": {"left": torch.tensor([4.0, 0.0]), "right": torch.tensor([1.0])}}
    other = {"w": {"left": torch.tensor([4.0, 1.0]), "right": torch.tensor([1.1])}}
    assert processes.difference(one, other) == pytest.approx(0.25)
    said = processes.report([1.0, 3.0, 2.0], [5.0, 5.0, 5.0], 1e-6, 24)
    assert "2.00 times as fast as one (1.00 to 3.00 over 3 pairs" in said


def test_a_peak_is_that_of_the_call_alone(tmp_path: Path) -> None:
    """In a fresh process: one that has worked before holds memory that a call can use again."""
    peaks, script = importlib.import_module("peaks"), tmp_path / "script.py"
    script.write_text(
        f"import json, sys; sys.path.insert(0, {str(BENCHMARKS)!r})\n"
        "import peaks, torch\n"
        "rises = [peaks.rise(lambda: torch.ones(2**24).sum()), peaks.rise(lambda: None)]\n"
        "print(json.dumps(rises))\n"
    )
    big, nothing = peaks.in_process(str(script))
    assert 60 < big < 80  # MiB; the tensor is gone again, its peak is not.
    assert nothing < 8


def test_a_script_is_weighed_in_a_process_that_gives_memory_back(tmp_path: Path) -> None:
    peaks, script = importlib.import_module("peaks"), tmp_path / "script.py"
    script.write_text(
        "import json, os, sys\n"
        "print('said before')\n"
        "print(json.dumps([os.environ['MALLOC_TRIM_THRESHOLD_'], *sys.argv[1:]]))\n"
    )
    assert peaks.in_process(str(script), "--case", "a b") == ["65536", "--case", "a b"]


def test_estimates_stand_beside_the_peaks() -> None:
    memory = importlib.import_module("memory")
    table = memory.table({"wide": {"decomposing": (12.0, 30.0), "predicting": (40.4, 20.2)}})
    assert table.splitlines()[2:] == [
        "| wide | decomposing | 12 | 30 | 2.50 |",
        "| wide | predicting | 40 | 20 | 0.50 |",
    ]
