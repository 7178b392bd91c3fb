"""The parts of the calibration benchmark that train no model."""

from __future__ import annotations

import gzip
import importlib
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from posthoc_bhpeft import Prediction

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of the benchmarks by its name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def cell(bench: Any, **changes: Any) -> Any:
    settings = {"rows": 320, "seed": 0, "protocol": "full", "test_rows": 50, "max_length": 48}
    return bench("calibration_data").Cell("sst2", **{**settings, **changes})


def scored(bench: Any, one: Any, method: str, nll: float, **changes: Any) -> Any:
    store = bench("calibration_store")
    known = {"accuracy": 0.8, "nll": nll, "ece": 0.1, "brier": 0.3, "aurc": 0.05, "removed": 0.2}
    rest = dict.fromkeys(store.APART, math.nan)
    times = {"fit_seconds": 1.5, "predict_seconds": 0.5}
    revision = bench("calibration_methods").METHODS[method].revision
    score = store.Score(
        one.key, one.name, one.rows, one.protocol, one.seed, method, revision, 50,
        **known, less=0.0, low=-0.1, high=0.1, **rest, **times,
    )  # fmt: skip
    return replace(score, **changes)


def test_a_cell_is_another_where_anything_that_decides_it_is(bench: Any) -> None:
    first = cell(bench)
    others = [
        cell(bench, rows=640),
        cell(bench, seed=1),
        cell(bench, protocol="over"),
        cell(bench, test_rows=60),
        cell(bench, max_length=64),
    ]
    assert len({first.key, *(one.key for one in others)}) == 6
    assert first.key == cell(bench).key
    assert first.key.startswith("sst2-320-full-0-")


def test_scores_come_back_from_the_file_and_old_revisions_do_not(
    bench: Any, tmp_path: Path
) -> None:
    store = bench("calibration_store")
    mine = [scored(bench, cell(bench), "MAP", 0.5), scored(bench, cell(bench), "ours", 0.45)]
    old = replace(scored(bench, cell(bench, seed=1), "ours", 0.3), revision=-1)
    path = tmp_path / "calibration.csv"
    path.write_text(store.as_csv([*mine, old]), encoding="utf-8")
    found = store.load(path)
    assert list(found) == [(one.cell, one.method) for one in mine]
    for one in mine:
        again = found[one.cell, one.method]
        assert math.isnan(again.auroc)
        zeros = dict.fromkeys(store.APART, 0)
        assert replace(again, **zeros) == replace(one, **zeros)
    assert store.load(tmp_path / "none.csv") == {}


def test_committed_scores_are_those_of_their_cells(bench: Any) -> None:
    """No key has changed, so that nothing finished is computed again."""
    calibration = bench("calibration")
    found = bench("calibration_store").load(BENCHMARKS / "results" / "calibration.csv").values()
    assert found
    for one in found:
        sizes = {"test_rows": calibration.TEST_ROWS, "max_length": calibration.MAX_LENGTH}
        assert one.cell == calibration.Cell(one.name, one.rows, one.seed, one.protocol, **sizes).key


def test_cells_that_another_process_adds_meanwhile_stay(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibration, store = bench("calibration"), bench("calibration_store")
    file = tmp_path / "calibration.csv"

    def run(one: Any, methods: Any, options: Any) -> Any:
        other = scored(bench, cell(bench, seed=1), "MAP", 0.4)
        file.write_text(store.as_csv([other]), encoding="utf-8")
        return {"MAP": scored(bench, one, "MAP", 0.5)}

    monkeypatch.setattr(calibration, "run", run)
    monkeypatch.setattr(calibration, "quiet", lambda: None)
    told = "calibration.py --data rows --sets sst2 --rows 320 --seeds 0 --methods MAP"
    monkeypatch.setattr(sys, "argv", [*told.split(), "--results", str(tmp_path)])
    calibration.main()
    assert {one.seed: one.nll for one in store.load(file).values()} == {0: 0.5, 1: 0.4}


def test_only_what_is_missing_is_run(bench: Any, tmp_path: Path) -> None:
    store, first, second = bench("calibration_store"), cell(bench), cell(bench, seed=1)
    file, asked = tmp_path / "calibration.csv", []
    finished = [scored(bench, first, method, 0.5) for method in ("MAP", "temperature")]
    half = scored(bench, second, "temperature", 0.5)
    file.write_text(store.as_csv([*finished, half]), encoding="utf-8")

    def run(one: Any, methods: Any) -> Any:
        asked.append((one.seed, methods))
        return {method: scored(bench, one, method, 0.5) for method in methods}

    for _ in range(2):
        store.complete(file, [first, second], ["temperature", "ours"], run, list)
    # MAP comes along, to be compared with; the second time there is nothing to do.
    assert asked == [(0, ["MAP", "ours"]), (1, ["MAP", "ours"])]
    assert len(store.load(file)) == 6


def test_rows_of_no_known_class_are_told_by_every_doubt_there_is(bench: Any) -> None:
    store = bench("calibration_store")
    p = torch.tensor([[0.9, 0.1], [0.6, 0.4]])
    doubt = torch.tensor([0.1, 0.5])
    inside = Prediction(p, p, None, doubt, doubt, doubt, novelty=torch.tensor([1.0, 3.0]))
    outside = replace(inside, total=doubt + 1, novelty=torch.tensor([2.0, 4.0]))
    found = store.told_apart(SimpleNamespace(test=inside, outside=outside))
    assert found == {
        "auroc": 0.5,
        "auroc_total": 1.0,
        "auroc_epistemic": 0.5,
        "auroc_novelty": 0.75,
    }
    plain = store.told_apart(SimpleNamespace(test=replace(inside, novelty=None), outside=outside))
    assert math.isnan(plain["auroc_novelty"])
    assert plain["auroc_total"] == 1.0
    nothing = store.told_apart(SimpleNamespace(test=inside, outside=None))
    assert all(math.isnan(value) for value in nothing.values())
    scores = [scored(bench, cell(bench), "ours", 0.5, **found)]
    scores.append(scored(bench, cell(bench), "MAP", 0.5, **plain))
    table = bench("calibration_tables").outside_table(scores)
    assert "| ours | 1 | 0.500 | 1.000 | 0.500 | 0.750 |" in table
    assert "| MAP | 1 | 0.500 | 1.000 | 0.500 | - |" in table


def test_the_summary_by_hand(bench: Any) -> None:
    tables = bench("calibration_tables")
    first, second = cell(bench), cell(bench, seed=1)
    scores = [
        scored(bench, first, "MAP", 0.5, ece=0.2),
        scored(bench, second, "MAP", 0.4, ece=0.01),
        scored(bench, first, "ours", 0.4, ece=0.08, low=-0.2, high=-0.01, accuracy=0.79),
        scored(bench, second, "ours", 0.42, low=-0.01, high=0.05),
    ]
    row = tables.summary_row("ours", tables.beside_map(scores, "ours"))
    assert row[1] == "2"
    assert row[2].startswith(f"{math.sqrt(0.8 * 1.05):.3f}")
    assert row[3] == "1.050"
    assert row[4] == "1, 1, 0"
    assert row[5] == "-0.5 (-1.0)"
    # Only the cell where MAP's ECE is above 5 % counts.
    assert row[6] == "0.080 (MAP 0.200)"


def test_pairs_of_a_question_stay_together(bench: Any, tmp_path: Path) -> None:
    data = bench("calibration_data")
    folder = tmp_path / "arc_easy"
    folder.mkdir()
    for split, questions in (("train", 300), ("test", 40)):
        lines = [
            json.dumps({"question": f"{split} {i}?", "choices": ["a", "b", "c"], "label": i % 3})
            for i in range(questions)
        ]
        with gzip.open(folder / f"{split}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.write("\n".join(lines))
    one = replace(cell(bench, rows=300, protocol="early", test_rows=60), name="arc_easy")
    rows = data.rows_of(one, tmp_path)
    sizes = [len(part) for part in (rows.train, rows.extra, rows.validation, rows.test)]
    assert sizes == [300, 200, 200, 60]
    assert rows.train.label_names == ("wrong", "right")
    assert sum(rows.train.labels) == 100
    assert not {*rows.train.texts} & {*rows.test.texts}
    for first in range(0, 300, 3):
        assert len({*rows.train.texts[first : first + 3]}) == 1


def test_too_few_rows_are_said(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bench("calibration_data")
    short = SimpleNamespace(train=range(10), extra=range(200))
    monkeypatch.setattr(data, "classified", lambda *_: short)
    with pytest.raises(data.DataError, match="too few rows for 320 and 200 more"):
        data.rows_of(cell(bench), Path("rows"))
