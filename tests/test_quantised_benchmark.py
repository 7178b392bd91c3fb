"""The parts of the benchmark of quantised bases that train nothing for long."""

from __future__ import annotations

import gzip
import importlib
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from posthoc_bhpeft.likelihood import Categorical
from posthoc_bhpeft.predictive.uncertainty import predict_point
from tests.texts import make_base, make_rows

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("quantised")


def cell(bench: Any, **changes: Any) -> Any:
    settings = {"name": "ag_news", "case": bench.Case(24, 1, 16), "trained": "no", "seed": 0}
    return bench.Cell(**{**settings, "test_rows": 12, **changes})


def scored(bench: Any, fitted: str, seed: int, ours: float) -> Any:
    size = {"no": 4 * 2**20, "4bit": 2**20}[fitted]
    return bench.Score("a", "ag_news", "no", seed, fitted, size, 0.8, 0.6, ours, 0.01)


def test_a_cell_is_another_where_anything_that_decides_it_is(bench: Any) -> None:
    first = cell(bench)
    changes = ({"seed": 1}, {"trained": "4bit"}, {"test_rows": 8}, {"case": bench.Case(24, 2, 16)})
    assert len({first.key, *(replace(first, **one).key for one in changes)}) == 5


def test_a_training_is_fitted_in_all_ways_that_there_are(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "ag_news"
    folder.mkdir()
    for split, seed in (("train", 1), ("test", 2)):
        with gzip.open(folder / f"{split}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(one) + "\n" for one in make_rows(24, seed))
    base, train = make_base(tmp_path / "base"), bench.train
    monkeypatch.setattr(bench, "train", lambda _, *a, **k: train(str(base), *a, **k))
    found = bench.run(cell(bench), tmp_path)
    assert [one.fitted for one in found] == ["no", "8bit", "4bit"]
    full, eight, four = (one.base_bytes for one in found)
    assert full > eight > four
    for one in found:
        assert one.ours == pytest.approx(one.plain, abs=0.3)
        assert one.plain == pytest.approx(found[0].plain, abs=0.1)
        assert one.error < 0.3


def test_losses_by_hand(bench: Any) -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    point = predict_point(Categorical(), logits).with_labels(torch.tensor([1, 0]))
    expected = [math.log(1 + math.exp(2)), math.log(2)]
    assert bench.losses(point).tolist() == pytest.approx(expected)


def test_what_is_kept_is_what_is_loaded_and_shown(bench: Any, tmp_path: Path) -> None:
    scores = [
        scored(bench, "4bit", 0, 0.5),
        scored(bench, "no", 1, 0.5),
        scored(bench, "no", 0, 0.7),
    ]
    (tmp_path / "kept.csv").write_text(bench.as_csv(scores))
    found = bench.load(tmp_path / "kept.csv")
    assert [(one.fitted, one.seed) for one in found] == [("no", 0), ("no", 1), ("4bit", 0)]
    full, four = bench.table(found).splitlines()[2:]
    assert full.startswith("| ag_news | full | full | 4.0 | 0.800 ± 0.000 | 0.600 ± 0.000 |")
    assert full.endswith("| 0.600 ± 0.141 | +0.100 (0.010); -0.100 (0.010) |")
    assert four.startswith("| ag_news | full | 4 bits | 1.0 | 0.800 | 0.600 | 0.500 |")


def test_committed_scores_are_those_of_their_cells(bench: Any) -> None:
    options = bench.parse(["--data", "rows"])
    found = bench.load(BENCHMARKS / "results" / bench.SCORES)
    assert found
    for one in found:
        own = bench.Cell(one.name, bench.CASES[one.name], one.trained, one.seed, options.test_rows)
        assert one.cell == own.key
