"""The parts of the stream benchmark that run no model, on rows and scores made up here."""

from __future__ import annotations

import importlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from posthoc_bhpeft.data import TextData
from posthoc_bhpeft.errors import DataError
from posthoc_bhpeft.streams import RoundScore
from tests.streams import tiny

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of the benchmarks by its name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def dated(dates: list[str], labels: list[int] | None = None) -> TextData:
    labels = [i % 2 for i in range(len(dates))] if labels is None else labels
    return TextData(
        texts=tuple(f"{date} {i}" for i, date in enumerate(dates)),
        labels=tuple(labels),
        label_names=("dovish", "hawkish"),
        columns={"date": tuple(dates)},
    )


# Eras


def test_eras_are_contiguous_and_lose_no_row(bench: Any) -> None:
    rows = dated([f"20{i * 7 % 40:02d}-01-01" for i in range(40)])
    parts = bench("stream_data").eras(rows, 4)
    assert [len(part) for part in parts] == [10] * 4
    dates = [date for part in parts for date in part.columns["date"]]
    assert dates == sorted(rows.columns["date"])
    assert sorted(t for part in parts for t in part.texts) == sorted(rows.texts)


def test_rows_of_one_date_stay_in_one_era(bench: Any) -> None:
    # An even cut would go through the ten rows of 2001: the border nearest to 8 is before them.
    rows = dated(["2000"] * 6 + ["2001"] * 10)
    assert [len(part) for part in bench("stream_data").eras(rows, 2)] == [6, 10]


def test_every_era_has_a_date_of_its_own_however_uneven_they_are(bench: Any) -> None:
    rows = dated(["2000"] * 20 + ["2001", "2002", "2003"])
    assert [len(part) for part in bench("stream_data").eras(rows, 4)] == [20, 1, 1, 1]
    rows = dated(["2000", "2001", "2002"] + ["2003"] * 20)
    assert [len(part) for part in bench("stream_data").eras(rows, 4)] == [1, 1, 1, 20]


def test_eras_say_what_is_missing(bench: Any) -> None:
    eras = bench("stream_data").eras
    with pytest.raises(DataError, match="2 different values of 'date' cannot make 3 eras"):
        eras(dated(["2000", "2001", "2001"]), 3)
    with pytest.raises(DataError, match=r"no column 'day'.*date"):
        eras(dated(["2000", "2001"]), 2, "day")


# Labels


def test_stars_become_polarity_and_the_middle_is_dropped(bench: Any) -> None:
    module = bench("stream_data")
    stars = ("very negative", "negative", "neutral", "positive", "very positive")
    rows = TextData(texts=tuple("abcde"), labels=(4, 2, 0, 1, 3), label_names=stars)
    new = module.relabelled(rows, module.SENTIMENT, module.POLARITY)
    assert new.texts == ("a", "c", "d", "e")
    assert new.labels == (1, 0, 0, 1)
    assert new.label_names == ("negative", "positive")
    assert new.indices == (0, 2, 3, 4)


def test_labels_of_another_kind_are_refused(bench: Any) -> None:
    module = bench("stream_data")
    with pytest.raises(DataError, match=r"dovish, hawkish, none of which is among very negative"):
        module.relabelled(dated(["2000"]), module.SENTIMENT, module.POLARITY)


def test_pooled_rows_keep_labels_and_dates(bench: Any) -> None:
    both = bench("stream_data").pooled([dated(["2000", "2001"]), dated(["1999"], [1])])
    assert both.labels == (0, 1, 1)
    assert both.columns["date"] == ("2000", "2001", "1999")


# Streams


def write_set(folder: Path, names: list[str], rows: int, **columns: list[str]) -> None:
    folder.mkdir()
    (folder / "meta.json").write_text(json.dumps({"label_names": names}))
    for split in ("train", "test"):
        lines = [
            {"text": f"{folder.name} {split} {i}", "label": i % len(names)}
            | {name: values[i] for name, values in columns.items()}
            for i in range(rows)
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))


def test_growth_never_shows_a_row_twice_and_is_drawn_by_seed(bench: Any, tmp_path: Path) -> None:
    module = bench("stream_data")
    write_set(tmp_path / "sst2", ["negative", "positive"], 40)
    sizes = module.Sizes(growth=(5, 10, 20), test=15)
    one, other = (module.growth(tmp_path, seed, sizes) for seed in (0, 1))
    assert [len(r.train) for r in one.rounds] == [5, 10, 20]
    assert len({text for r in one.rounds for text in r.train.texts}) == 35
    assert one.rounds[0].train.texts != other.rounds[0].train.texts
    assert len({r.test.digest for r in (*one.rounds, *other.rounds)}) == 1
    assert [r.name for r in one.scored(1)] == ["rows-10"]


def test_domains_ask_one_question(bench: Any, tmp_path: Path) -> None:
    module = bench("stream_data")
    stars = ["very negative", "negative", "neutral", "positive", "very positive"]
    for name in module.DOMAINS:
        write_set(tmp_path / name, ["negative", "positive"] if name == "sst2" else stars, 40)
    stream = module.domains(tmp_path, 0, module.Sizes(domains=12, test=9))
    assert [len(r.train) for r in stream.rounds] == [12] * 4
    assert {r.train.label_names for r in stream.rounds} == {("negative", "positive")}
    assert [r.name for r in stream.scored(1)] == list(module.DOMAINS[:3])
    assert [r.name for r in stream.scored(3)] == list(module.DOMAINS)


def test_the_seed_sets_the_order_of_the_tasks(bench: Any, tmp_path: Path) -> None:
    module = bench("stream_data")
    for name in module.ORDERS[0]:
        write_set(tmp_path / name, ["a", "b", "c"], 12)
    sizes = module.Sizes(tasks=6, test=6)
    orders = [
        tuple(r.name for r in module.tasks(tmp_path, seed, sizes).rounds) for seed in range(4)
    ]
    assert orders == [*module.ORDERS, module.ORDERS[0]]


def test_eras_of_the_time_stream_share_no_row_with_their_tests(bench: Any, tmp_path: Path) -> None:
    module = bench("stream_data")
    days = [f"20{i:02d}-01-01" for i in range(40)]
    write_set(tmp_path / "fomc_stream", ["dovish", "hawkish"], 40, date=days)
    rounds = module.time(tmp_path, 0, module.Sizes(time=100, test=100)).rounds
    # 40 rows in each of the two splits; a quarter of 20 is held out, whatever the seed.
    assert [(len(r.train), len(r.test)) for r in rounds] == [(16, 4)] * 4
    assert not {t for r in rounds for t in r.train.texts} & {
        t for r in rounds for t in r.test.texts
    }
    assert rounds[0].name == "2000-01-to-2009-01"
    again = module.time(tmp_path, 5, module.Sizes(time=10, test=100)).rounds
    assert [r.test.digest for r in again] == [r.test.digest for r in rounds]
    assert [len(r.train) for r in again] == [10] * 4


# Cells


def test_the_first_training_is_done_once_and_only_where_it_is_the_same(
    bench: Any, tmp_path: Path
) -> None:
    first_fit = bench("first_fit")
    round_, second = tiny.round_of("one"), tiny.round_of("two", seed=1)

    def trained(penalty: Any = None, seed: int = 0) -> Any:
        learner = tiny.learner()
        kept = first_fit.FirstFit(learner, tmp_path)
        learner.meet(round_)
        history = learner.fit([("one", round_.train)], seed=seed, penalty=penalty)
        return learner, kept, history

    one, kept, history = trained()
    assert history
    assert kept.seconds_saved() == 0.0
    again, kept, history = trained()
    assert not history, "it was trained again"
    tiny.assert_same_weights(one, again)
    assert kept.seconds_saved() > 0.0
    assert kept.seconds_saved() == 0.0
    for learner in (one, again):
        learner.meet(second)
        assert learner.fit([("two", second.train)], seed=1), "only the first one is kept"
    tiny.assert_same_weights(one, again)
    assert trained(seed=1)[2]
    assert trained(penalty=Still())[2]


class Still:
    """A penalty that holds nothing."""

    def penalty(self, model: torch.nn.Module) -> torch.Tensor:
        return 0.0 * next(p for p in model.parameters() if p.requires_grad).sum()


def test_a_cell_is_found_again_unless_something_that_matters_changed(
    bench: Any, tmp_path: Path
) -> None:
    streams = bench("streams")
    write_set(tmp_path / "sst2", ["negative", "positive"], 40)

    def path(*words: str, method: str = "L2", strength: float | None = None) -> Path:
        options = streams.parse(["--data", str(tmp_path), "--growth-rows", "4", "8", *words])
        cell = streams.Cell("growth", 0, method, strength)
        return streams.path_of(cell, streams.setup_of(options))

    assert path() == path("--workers", "2", "--figures", "--seeds", "7")
    chosen = streams.METHODS["L2"].chosen
    assert path(strength=chosen).name.rpartition("-")[2] == path().name.rpartition("-")[2]
    others = [
        path("--epochs", "3"),
        path("--test-rows", "10"),
        path(strength=2.5 * chosen),
        path(method="warm start"),
        path(method="warm start, LoRA alone"),
    ]
    keys = [p.name.rpartition("-")[2] for p in (path(), *others)]
    assert len(set(keys)) == len(keys)


def test_every_method_names_its_settings_and_has_the_same_budget(bench: Any) -> None:
    methods = bench("stream_methods").METHODS
    for name, contender in methods.items():
        assert " at 0x" not in repr(contender()), name
        assert len(contender.grid) in (0, 3), name
        assert contender.chosen in (contender.grid or (1.0,)), name
    assert bench("stream_methods").OURS in methods


# Tables


def result(
    bench: Any, method: str, accuracies: list[list[float]], seed: int = 0, **changes: Any
) -> Any:
    """Accuracies [trained][tested]; NLL is one less the accuracy, ECE a tenth of that."""
    count = len(accuracies)
    scores = tuple(
        RoundScore(f"r{i}", f"r{j}", 100, 2, a, 1 - a, (1 - a) / 10)
        for i, row in enumerate(accuracies)
        for j, a in enumerate(row)
    )
    given: dict[str, Any] = {
        "stream": "domains",
        "seed": seed,
        "method": method,
        "one_test": False,
        "rounds": tuple(f"r{i}" for i in range(count)),
        "seconds": (5.0,) + (10.0,) * (count - 1),
        "state_bytes": (0,) * count,
        "weights_bytes": (100,) * count,
        "scores": scores,
    }
    return bench("stream_tables").Result(**{**given, **changes})


WARM = [[0.8, 0.6], [0.5, 0.9]]
JOINT = [[0.8], [0.8, 0.9]]


def line(table: str, method: str) -> list[str]:
    found = [text for text in table.splitlines() if text.startswith(f"| {method} |")]
    assert len(found) == 1, table
    return [cell.strip() for cell in found[0].strip("|").split("|")]


def test_measures_of_one_cell(bench: Any) -> None:
    warm = result(bench, "warm start", WARM)
    assert warm.mean("accuracy") == pytest.approx(0.7)
    assert warm.mean("accuracy", 0) == pytest.approx(0.8), "the round to come is not in the mean"
    assert warm.backward == pytest.approx(-0.3)
    assert warm.forward == pytest.approx(0.1)
    assert warm.later_seconds == 10.0


@pytest.mark.parametrize(
    ("method", "warm", "joint", "closed"),
    [(0.8, 0.7, 0.9, 0.5), (0.7, 0.7, 0.9, 0.0), (0.6, 0.7, 0.9, -0.5), (0.95, 0.7, 0.9, 1.25)],
)
def test_gap_closed(bench: Any, method: float, warm: float, joint: float, closed: float) -> None:
    assert bench("stream_tables").gap_closed(method, warm, joint) == pytest.approx(closed)


@pytest.mark.parametrize("joint", [0.705, 0.6])
def test_no_gap_is_no_share(bench: Any, joint: float) -> None:
    assert bench("stream_tables").gap_closed(0.8, 0.7, joint) is None


def test_the_gap_counts_only_seeds_that_all_have(bench: Any) -> None:
    results = [
        result(bench, "warm start", WARM),
        result(bench, "joint", JOINT),
        result(bench, "ours", [[0.8], [0.65, 0.9]]),
        result(bench, "ours", [[0.1], [0.1, 0.1]], seed=1),
    ]
    assert bench("stream_tables").closed(results, "ours") == pytest.approx(0.5)
    assert bench("stream_tables").closed(results[2:], "ours") is None


def test_main_table(bench: Any) -> None:
    ours = {"seconds": (99.0, 15.0), "state_bytes": (120, 120)}
    results = [
        result(bench, "warm start", WARM),
        result(bench, "ours", [[0.8], [0.65, 0.9]], **ours),
        result(bench, "ours", [[0.8], [0.65, 0.9]], seed=1, **ours),
        result(bench, "joint", JOINT, state_bytes=(10, 20)),
    ]
    table = bench("stream_tables").main_table(results)
    assert line(table, "warm start")[2:5] == ["70.0 ± 0.0", "-30.0", "+10.0"]
    # Seed 1 has no warm start to be compared with, so the ratio is that of seed 0.
    assert line(table, "ours")[1:] == [
        *["2", "77.5 ± 0.0", "-15.0", "–", "0.225", "0.022", "1.50", "1.2", "50 %"]
    ]
    assert line(bench("stream_tables").main_table(results[:2]), "ours")[7] == "1.50"
    assert line(table, "joint")[-2:] == ["0.2", "100 %"]


def test_a_state_that_grows_is_shown_to_grow(bench: Any) -> None:
    rounds = [[0.8], [0.8, 0.8], [0.8, 0.8, 0.8]]
    grown = result(bench, "progressive", rounds, state_bytes=(0, 100, 200))
    assert line(bench("stream_tables").main_table([grown]), "progressive")[8] == "1 to 2"


def test_one_test_set_has_no_transfer_and_is_held_against_joint(bench: Any) -> None:
    tables = bench("stream_tables")

    def growing(method: str, values: list[float], seconds: float) -> Any:
        scores = tuple(
            RoundScore(f"r{i}", f"r{i}", 9, 2, a, 1 - a, 0) for i, a in enumerate(values)
        )
        return result(
            bench, method, [[0.0]] * 3, one_test=True, scores=scores, seconds=(seconds,) * 3
        )

    results = [growing("joint", [0.5, 0.9, 0.9], 5.0), growing("ours", [0.5, 0.88, 0.91], 1.0)]
    assert results[1].backward is None
    assert results[1].forward is None
    assert line(tables.cost_table(results, "r1"), "ours") == ["ours", "-2.0", "0.20"]
    assert line(tables.curve_table(results), "ours") == ["ours", "50.0", "88.0", "91.0"]
    assert tables.differences(results[1:], results[:1], "accuracy") == pytest.approx([-0.02, 0.01])


def test_orders_are_told_apart(bench: Any) -> None:
    other = result(bench, "ours", WARM, seed=1, rounds=("r1", "r0"))
    table = bench("stream_tables").order_table([other, result(bench, "ours", JOINT)])
    assert table.splitlines()[0] == "| method | r0 → r1 | r1 → r0 |"
    assert line(table, "ours")[1] == "85.0"


def test_paired_differences(bench: Any) -> None:
    tables = bench("stream_tables")
    results = [
        *(result(bench, "ours", [[0.8], [0.7, 0.9]], seed) for seed in (0, 1)),
        *(result(bench, "LwF", [[0.8], [0.6, 0.8]], seed) for seed in (1, 2)),
    ]
    found = line(tables.paired_table(results, "ours"), "LwF")
    assert found == ["LwF", "2", "+10.0 (+10.0 to +10.0)", "-0.100 (-0.100 to -0.100)"]


def test_the_interval_covers_as_often_as_it_says(bench: Any) -> None:
    import numpy as np

    draws = np.random.default_rng(1).normal(0.3, 1.0, size=(300, 40))
    tables = bench("stream_tables")
    found = [tables.interval(values, resamples=400) for values in draws]
    covered = np.mean([i.low <= 0.3 <= i.high for i in found])
    # Percentile intervals of 40 values are a little short; 3 standard errors are 0.04.
    assert 0.88 <= covered <= 0.98
    assert found[0].estimate == pytest.approx(draws[0].mean())


def test_cells_come_back_from_the_csv(bench: Any, tmp_path: Path) -> None:
    store = bench("stream_store")
    cells = {
        "a": result(bench, "warm start", WARM, seed=2, state_bytes=(0, 150)),
        "b": result(bench, "L2, strong", JOINT, one_test=True),
    }
    (tmp_path / "cells.csv").write_text(store.as_csv(cells), encoding="utf-8")
    found = store.from_csv(tmp_path / "cells.csv")
    assert list(found) == ["a", "b"]
    for name, cell in cells.items():
        for before, after in zip(cell.scores, found[name].scores, strict=True):
            assert asdict(after) == pytest.approx(asdict(before), abs=1e-4)
        rest = {"scores": ()}
        assert replace(found[name], **rest) == replace(cell, **rest)
    assert store.from_csv(tmp_path / "none.csv") == {}


def test_a_cell_whose_costs_were_not_kept_counts_for_its_scores_alone(
    bench: Any, tmp_path: Path
) -> None:
    nothing = dict.fromkeys(("seconds", "state_bytes", "weights_bytes"), (float("nan"),) * 2)
    store, tables = bench("stream_store"), bench("stream_tables")
    cells = {
        "a": result(bench, "warm start", WARM),
        "b": result(bench, "warm start", WARM, seed=1, **nothing),
        "c": result(bench, "joint", JOINT, seconds=(5.0, 30.0)),
        "d": result(bench, "joint", JOINT, seed=1, **nothing),
        "e": result(bench, "L2", JOINT, **nothing),
    }
    (tmp_path / "cells.csv").write_text(store.as_csv(cells), encoding="utf-8")
    table = tables.main_table(list(store.from_csv(tmp_path / "cells.csv").values()))
    assert line(table, "joint")[1] == "2", "both seeds are in the accuracy"
    assert line(table, "joint")[7:9] == ["3.00", "0"]
    assert line(table, "L2")[7:9] == ["–", "–"]


def test_strengths_come_back_from_the_csv(bench: Any, tmp_path: Path) -> None:
    store = bench("stream_store")
    text = store.tuning_as_csv({"tasks-100-l2@1-ab": 0.5, "tasks-100-l2@10-cd": 0.625})
    (tmp_path / "tuning.csv").write_text(text, encoding="utf-8")
    found = store.tuning_from_csv(tmp_path / "tuning.csv")
    assert found == {"tasks-100-l2@1-ab": 0.5, "tasks-100-l2@10-cd": 0.625}
    assert store.tuning_from_csv(tmp_path / "none.csv") == {}


def test_the_picture_has_a_panel_a_stream_and_a_line_a_round(bench: Any) -> None:
    pytest.importorskip("matplotlib")
    results = [
        result(bench, "warm start", WARM),
        result(bench, "ours", [[0.8], [0.65, 0.9]]),
        result(bench, "ours", JOINT, stream="time"),
    ]
    figure = bench("stream_figures").picture(results, ("ours", "warm start"))
    assert [axes.get_title() for axes in figure.axes] == ["domains", "time"]
    assert [len(axes.lines) for axes in figure.axes] == [4, 2]
    ours, warm = figure.axes[0].lines[:2], figure.axes[0].lines[2:]
    assert list(ours[0].get_ydata()) == pytest.approx([80.0, 65.0])
    assert list(warm[1].get_ydata()) == pytest.approx([90.0])
    assert list(warm[1].get_xdata()) == [2]
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["r0", "r1"]


def test_a_run_of_one_seed_keeps_the_others_that_are_committed(bench: Any, tmp_path: Path) -> None:
    streams = bench("streams")
    line = "growth-7-l2-0,growth,1,7,L2,rows-10,rows-10,20,2,0.5,0.7,0.1,,,"
    header = (
        "cell,stream,one_test,seed,method,trained,tested,n,outputs,"
        "accuracy,nll,ece,seconds,state_bytes,weights_bytes"
    )
    (tmp_path / "streams.csv").write_text(f"{header}\n{line}\n", encoding="utf-8")
    setup = streams.setup_of(streams.parse(["--data", "rows", "--results", str(tmp_path)]))
    assert streams.known_seeds(setup, [2]) == [2, 7]
