"""The parts of the benchmark of words that train no model."""

from __future__ import annotations

import importlib
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("words")


@pytest.fixture
def kept(bench: Any) -> Any:
    """Its scores and their tables."""
    return importlib.import_module("words_scores")


def cell(bench: Any, **changes: Any) -> Any:
    sizes = {"texts": 20, "test_texts": 10, "words": 6, "draws": 2}
    settings = {"name": "ag_news", "epochs": 1, "noise": 0.0, "seed": 0, **sizes, **changes}
    return bench.Cell(**settings)


def written(folder: Path, rows: int = 30) -> Path:
    (folder / "ag_news").mkdir()
    for split in ("train", "test"):
        lines = [
            json.dumps({"text": f"The {split} of NASA, 19{number}, was A.", "label": 0})
            for number in range(rows)
        ]
        (folder / "ag_news" / f"{split}.jsonl").write_text("\n".join(lines))
    return folder


def scored(kept: Any, seed: int, method: str, nll: float, less: float = 0.0) -> Any:
    known = (f"ag_news-{seed}", "ag_news", 1, 0.0, seed, method, 50)
    return kept.Score(*known, 0.8, nll, 0.1, less, 0.01, 5.0, 0.5)


def test_a_cell_is_another_where_anything_that_decides_it_is(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = cell(bench)
    changed = ("epochs", "noise", "seed", "texts", "test_texts", "words", "draws")
    others = [replace(first, **{name: getattr(first, name) + 1}) for name in changed]
    keys = {first.key, *(one.key for one in others), replace(first, name="airline_tweets").key}
    monkeypatch.setattr(bench, "BATCH_SIZE", 3)
    assert len({*keys, first.key}) == len(others) + 3
    assert first.key.startswith("ag_news-1-0-0-")


def test_committed_scores_are_those_of_their_cells(bench: Any) -> None:
    options = bench.parse(["--data", "rows"])
    found = {one.cell for one in bench.load(BENCHMARKS / "results" / bench.SCORES)}
    assert found
    assert found <= {one.key for one in bench.cells(options)}


def test_tags_by_how_a_word_is_written(bench: Any) -> None:
    words = bench.PIECES.findall("The NASA's A well-known U.S. 1,000 km, F-16!")
    assert words[:5] == ["The", "NASA's", "A", "well-known", "U.S"]
    said = {word: bench.TAGS[bench.tag(word)] for word in ("The", "A", "US", "km", "F-16", ",")}
    assert said == {"The": "capitalised", "A": "capitalised", "US": "capitals", "km": "none",
                    "F-16": "number", ",": "mark"}  # fmt: skip


def test_words_are_seen_in_small_letters_and_test_texts_are_one_draw(
    bench: Any, tmp_path: Path
) -> None:
    data = written(tmp_path)
    (train, test), (other, again) = (bench.rows_of(cell(bench, seed=s), data) for s in (0, 1))
    assert (len(train), len(test)) == (20, 10)
    assert train.words[0][:5] == ("the", "train", "of", "nasa", ",")
    assert train.labels[0] == (1, 0, 0, 2, 4, 3)
    assert max(map(len, train.words)) == 6
    assert train.words != other.words
    assert (test.words, test.labels) == (again.words, again.labels)


def test_noise_draws_a_share_of_the_tags(bench: Any) -> None:
    texts = ["small words alone here"] * 2000
    tags = [t for row in bench.tagged(texts, cell(bench, noise=0.5), 0).labels for t in row]
    # One of five of the tags that are drawn is the word's own.
    share = sum(t != 0 for t in tags) / len(tags)
    assert share == pytest.approx(0.4, abs=4 * math.sqrt(0.24 / len(tags)))


def test_a_mean_over_words_with_its_error_over_texts(kept: Any) -> None:
    """Words that repeat what their text says tell no more than the texts."""
    per_text = torch.randn(400, generator=torch.Generator().manual_seed(0)).double()
    counted = torch.ones(400, 7, dtype=torch.bool)
    mean, error = kept.mean_of_texts(per_text[:, None].expand(-1, 7), counted)
    assert mean == pytest.approx(float(per_text.mean()))
    assert error == pytest.approx(float(per_text.std()) / 20)
    counted[:200, 2:] = False
    mean, _ = kept.mean_of_texts(counted * per_text[:, None], counted)
    weights = counted.sum(1).double()
    assert mean == pytest.approx(float((weights * per_text).sum() / weights.sum()))


def test_losses_of_words_without_a_label_are_none(kept: Any) -> None:
    probabilities = torch.tensor([[[0.25, 0.75], [0.5, 0.5]]])
    found = kept.losses(probabilities, torch.tensor([[1, -100]]))
    assert found.tolist() == [[pytest.approx(-math.log(0.75)), 0.0]]


def test_what_is_kept_is_what_is_loaded(kept: Any, tmp_path: Path) -> None:
    scores = [scored(kept, 1, "ours", 0.5), scored(kept, 0, "ours", 0.4, -0.1)]
    (tmp_path / "words.csv").write_text(kept.as_csv(scores))
    assert kept.load(tmp_path / "words.csv") == scores[::-1]
    assert kept.load(tmp_path / "none.csv") == []


def test_tables_by_hand(kept: Any) -> None:
    plain = [scored(kept, seed, "MAP", 0.5) for seed in (0, 1)]
    ours = [scored(kept, 0, "ours", 0.4, -0.1), scored(kept, 1, "ours", 0.51, 0.01)]
    wide = [scored(kept, 0, "visible precision", 0.55, 0.05)]
    summary = kept.summary_table([*plain, *ours, *wide]).splitlines()
    assert summary[2:] == [
        "| visible precision | 1 | +10.00 % | +10.00 to +10.00 % | 0, 0, 1 |",
        "| ours | 2 | -9.00 % | -20.00 to +2.00 % | 1, 1, 0 |",
    ]
    figures = kept.figures_table([*plain, *ours, *wide]).splitlines()
    assert figures[2].startswith("| ag_news | 1 | 0% | 2 | MAP |")
    told = "0.4550 ± 0.0778 | 0.100 ± 0.000 | -20.00 % to +2.00 % | 0.50, 0.50 |"
    assert figures[-1].endswith(told)


def test_the_page_says_what_was_asked_for(bench: Any, kept: Any) -> None:
    options = SimpleNamespace(data=Path("rows"), texts=160, words=24, test_texts=100, draws=8)
    scores = [scored(kept, 0, method, 0.5) for method in kept.METHODS]
    assert "from 160 texts in small letters, cut after 24" in bench.page(scores, options)
