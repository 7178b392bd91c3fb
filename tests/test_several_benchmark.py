"""The parts of the benchmark of several labels that train no model."""

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
import torch.nn.functional as F

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("several")


def cell(bench: Any, name: str, rows: int = 12, **changes: Any) -> Any:
    case = replace(bench.CASES[name], rows=rows)
    return bench.Cell(**{"name": name, "case": case, "seed": 0, "test_rows": 9, **changes})


def written(folder: Path, source: str, names: list[str], rows: list[dict[str, Any]]) -> Path:
    """A set whose splits have the same rows."""
    place = folder / source
    place.mkdir()
    (place / "meta.json").write_text(json.dumps({"label_names": names}))
    for split in ("train", "test"):
        with gzip.open(place / f"{split}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(one) + "\n" for one in rows)
    return folder


def scored(bench: Any, seed: int, ours: float) -> Any:
    return bench.Score(
        f"ag_news-{seed}", "ag_news", seed, 4, 0.7, 2.6, 2.0, ours, 0.05, 0.2, 0.1, 30.0, 0.5
    )


def test_a_cell_is_another_where_anything_that_decides_it_is(bench: Any) -> None:
    first = cell(bench, "ag_news")
    others = [replace(first, seed=1), replace(first, test_rows=8), cell(bench, "ag_news", rows=11)]
    assert len({one.key for one in (first, *others)}) == 4
    assert cell(bench, "ag_news, by heart").key.startswith("ag_news-by-heart-0-")


def test_articles_have_their_topics_and_no_more_words_than_asked(
    bench: Any, tmp_path: Path
) -> None:
    rows = [{"text": f"w{n} " * 40, "label": n % 2} for n in range(20)]
    data = written(tmp_path, "ag_news", ["World", "Sports"], rows)
    train, test = bench.rows_of(cell(bench, "ag_news"), data)
    assert (len(train), len(test)) == (12, 9)
    assert train.multi_label
    assert train.label_names == ("Sports", "World")
    for text, labels in zip(train.texts, train.labels, strict=True):
        words = text.split()
        assert len(words) in (25, 50)
        topics = {int(word[1:]) % 2 for word in words}
        assert labels == (int(1 in topics), int(0 in topics))


def test_neutral_tweets_have_no_label_and_complaints_their_reason(
    bench: Any, tmp_path: Path
) -> None:
    rows = [
        {"text": "late", "label": 0, "reason": "Late Flight"},
        {"text": "fine", "label": 1},
        {"text": "good", "label": 2, "reason": None},
    ] * 5
    data = written(tmp_path, "airline_tweets", ["negative", "neutral", "positive"], rows)
    train, _ = bench.rows_of(cell(bench, "airline_tweets"), data)
    assert train.label_names == ("Late Flight", "negative", "positive")
    expected = {"late": (1, 1, 0), "fine": (0, 0, 0), "good": (0, 0, 1)}
    assert dict(zip(train.texts, train.labels, strict=True)) == expected


def test_labels_are_those_of_training_rows_and_test_rows_are_one_draw(
    bench: Any, tmp_path: Path
) -> None:
    rows = [{"text": f"q{n}", "label": 0, "domain": f"d{n}"} for n in range(30)]
    data = written(tmp_path, "clinc150", ["all"], [*rows, {"text": "out", "label": 0}])
    (train, test), (other, again) = (
        bench.rows_of(cell(bench, "clinc150", rows=3, seed=s), data) for s in (0, 1)
    )
    assert train.texts != other.texts
    assert test.texts == again.texts
    assert "out" not in " ".join([*train.texts, *other.texts, *test.texts])
    for text, labels in zip(train.texts, train.labels, strict=True):
        own = {f"d{one.strip()[1:]}" for one in text.split(".")}
        assert own == {n for n, yes in zip(train.label_names, labels, strict=True) if yes}
    assert any(not any(labels) for labels in test.labels)


def test_figures_by_hand(bench: Any) -> None:
    p = torch.tensor([[0.9, 0.2], [0.6, 0.5]], dtype=torch.float64)
    y = torch.tensor([[1.0, 0], [0, 1]], dtype=torch.float64)
    expected = F.binary_cross_entropy(p, y, reduction="none").sum(1)
    assert torch.allclose(bench.loss(p, y), expected)
    assert bench.f1(p, y) == pytest.approx(2 * 1 / (2 + 2))
    assert bench.f1(0 * p, 0 * y) == 0
    assert math.isfinite(float(bench.loss(y, 1 - y).max()))
    # Bins of one answer each: |0.9 - 1|, |0.2 - 0|, |0.6 - 0|, |0.5 - 1|.
    assert bench.calibration_error(p, y) == pytest.approx((0.1 + 0.2 + 0.6 + 0.5) / 4)
    assert bench.calibration_error(p, y, bins=1) == pytest.approx(0.2 / 4)


def test_what_is_kept_is_what_is_loaded_and_shown(bench: Any, tmp_path: Path) -> None:
    scores = [scored(bench, 1, 1.75), scored(bench, 0, 1.5)]
    (tmp_path / "several.csv").write_text(bench.as_csv(scores))
    found = bench.load(tmp_path / "several.csv")
    assert found == scores[::-1]
    line = bench.table(found).splitlines()[2]
    assert line.startswith("| ag_news | 4 | 320 rows, 4 epochs, rate 0.001 | 0.70 ± 0.00 |")
    assert "| 1.625 ± 0.177 | -0.500 (0.050); -0.250 (0.050) |" in line


def test_committed_scores_are_those_of_their_cells(bench: Any) -> None:
    options = bench.parse(["--data", "rows"])
    found = bench.load(BENCHMARKS / "results" / bench.SCORES)
    assert found
    known = {
        bench.Cell(name, bench.CASES[name], one.seed, options.test_rows).key
        for one in found
        for name in bench.CASES
    }
    assert {one.cell for one in found} <= known
