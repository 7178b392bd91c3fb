"""The parts of the benchmark of answer tokens that train no model."""

from __future__ import annotations

import importlib
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from posthoc_bhpeft.errors import DataError
from tests.tasks.words import make_questions, tokenizer, write_rows

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("answers")


def cell(bench: Any, **changes: Any) -> Any:
    settings = {"rows": 20, "extra": 10, "test_rows": 12, "steps": 5, "max_length": 64}
    return bench.Cell(
        "stories", changes.pop("name", "arc_easy"), **{"seed": 0, **settings, **changes}
    )


def written(folder: Path, name: str = "arc_easy", rows: int = 40) -> Path:
    for number, split in enumerate(("train", "validation", "test")):
        write_rows(folder / name / f"{split}.jsonl", make_questions(rows, seed=number))
    return folder


def scored(bench: Any, name: str, seed: int, method: str, less: float, wide: float) -> Any:
    store = importlib.import_module("calibration_store")
    known = {"accuracy": 0.3, "nll": 1.5 + less, "ece": 0.1, "brier": 0.8, "aurc": 0.7}
    rest = dict.fromkeys(store.APART, math.nan)
    return store.Score(
        f"{name}-{seed}", name, 20, "5 steps", seed, method, bench.METHODS[method].revision, 12,
        **known, removed=0.1, less=less, low=less - wide, high=less + wide, **rest,
        fit_seconds=1.0, predict_seconds=1.0,
    )  # fmt: skip


def test_a_cell_is_another_where_anything_that_decides_it_is(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = cell(bench)
    changed = ("seed", "rows", "extra", "test_rows", "steps", "max_length")
    others = [replace(first, **{name: getattr(first, name) + 1}) for name in changed]
    others += [replace(first, name="boolq"), replace(first, model="another")]
    keys = {first.key, *(one.key for one in others)}
    monkeypatch.setattr(bench, "LEARNING_RATE", 1e-3)
    assert len({*keys, first.key}) == len(others) + 2
    assert first.key.startswith("arc_easy-20-0-")


def test_committed_scores_are_those_of_their_cells(bench: Any) -> None:
    store = importlib.import_module("calibration_store")
    path = BENCHMARKS / "results" / bench.SCORES
    options = bench.parse(["--data", "rows", "--model", "stories260K"])
    found = {one.cell for one in store.load(path).values()}
    assert found <= {one.key for one in bench.cells(options)}
    assert found


def test_rows_to_train_on_and_those_of_temperatures_are_apart(bench: Any, tmp_path: Path) -> None:
    data = written(tmp_path)
    first, second = (bench.rows_of(cell(bench, seed=seed), data) for seed in (0, 1))
    assert [len(part) for part in (first.train, first.extra, first.test)] == [20, 10, 12]
    assert not {*first.train.indices} & {*first.extra.indices}
    assert first.train.indices != second.train.indices
    assert first.test.indices == second.test.indices
    assert first.test.split == "test"


def test_winogrande_is_tested_on_its_validation_rows(bench: Any, tmp_path: Path) -> None:
    found = bench.tested("winogrande_s", 12, written(tmp_path, "winogrande_s"))
    assert found.split == "validation"


def test_too_few_rows_are_said(bench: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="arc_easy has 40 training rows; 60 were asked for"):
        bench.rows_of(cell(bench, rows=50), written(tmp_path))


def test_as_many_batches_as_steps(bench: Any, tmp_path: Path) -> None:
    """Twenty rows are three batches of at most eight, the last of four; the fourth starts again."""
    one = cell(bench, steps=4)
    subject = bench.Subject(one, bench.rows_of(one, written(tmp_path)), tmp_path)
    subject.__dict__["tokenizer"] = tokenizer()
    found = list(subject.training_batches())
    assert [len(batch["labels"]) for batch in found] == [8, 8, 4, 8]
    assert found[0]["input_ids"].tolist() != found[3]["input_ids"].tolist()


def test_differences_by_hand(bench: Any) -> None:
    plain = [scored(bench, "boolq", seed, "MAP", 0.0, 0.0) for seed in (0, 1)]
    clear = scored(bench, "boolq", 0, "ours", -0.2, 0.1)
    level = scored(bench, "boolq", 1, "ours", -0.1, 0.2)
    worse = [scored(bench, "boolq", seed, "temperature", 0.3, 0.1) for seed in (0, 1)]
    lines = bench.differences_table([*plain, clear, level, *worse]).splitlines()
    assert lines[2:] == [
        "| boolq | temperature | +0.3000 (+0.3000 to +0.3000) | 0, 0, 2 |",
        "| boolq | ours | -0.1500 (-0.2000 to -0.1000) | 1, 1, 0 |",
    ]


def test_what_one_who_reads_nothing_gets(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"question": "which is hot ?", "choices": ["fire", "ice"], "label": label}
        for label in (0, 0, 0, 1)
    ]
    write_rows(tmp_path / "arc_easy" / "test.jsonl", rows)
    monkeypatch.setattr(bench, "load_tokenizer", lambda _: tokenizer())
    options = SimpleNamespace(
        sets=["arc_easy"], test_rows=4, data=tmp_path, model=tmp_path, max_length=8
    )
    line = bench.rows_table(options).splitlines()[-1]
    entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert line == f"| arc_easy | test | 4 | 2 | 0.750 | {entropy:.3f} | 100% |"
