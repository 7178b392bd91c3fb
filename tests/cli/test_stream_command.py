"""`bhpeft stream` end to end on a tiny model: what it makes, shows, refuses, and goes on with."""

from __future__ import annotations

import inspect
import json

import pytest
from transformers import Trainer

from posthoc_bhpeft.cli import stream as command
from posthoc_bhpeft.streams import Stream
from posthoc_bhpeft.streams.methods.carried import CarriedPosterior
from tests.cli.tools import TINY, call, ok, refused
from tests.texts import make_base, make_rows, write_jsonl

SMALL = (*TINY, "--epochs", "1", "--device", "cpu")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Rows of two years; shops a and b in each."""
    rows = make_rows(48)
    dated = [{**row, "at": f"20{20 + n // 24}-03-{1 + n % 24:02d}"} for n, row in enumerate(rows)]
    return write_jsonl(tmp_path_factory.mktemp("data") / "rows.jsonl", dated)


@pytest.fixture(scope="module")
def options(base):
    return ("--model", base, *SMALL)


@pytest.fixture(scope="module")
def learnt(data, options, tmp_path_factory):
    """Two years, what was shown, and the result."""
    out = tmp_path_factory.mktemp("runs") / "out"
    done = call("stream", data, "--by", "at", "--every", "year", "--output", out, *options)
    assert done.exit_code == 0, done.stderr
    return out, done.stdout


def test_every_year_is_a_round_in_a_folder(learnt):
    found = [path.name for path in sorted(learnt[0].iterdir())]
    assert found == ["accuracy.png", "round-001-2020", "round-002-2021", "stream.json"]
    rounds = Stream.open(learnt[0]).report.rounds
    assert [(one.train.n, one.test.n) for one in rounds] == [(20, 4), (20, 4)]
    assert all(one.train.source.endswith("rows.jsonl") for one in rounds)


def test_tables_show_all_rounds_so_far(learnt):
    shown = learnt[1]
    assert "2 rounds" in shown
    first, second = shown.split("after round ")[1:]
    assert first.startswith("1 of 2, 2020: 20 rows learnt in")
    assert "2020" in second
    assert second.count(" %") == 5
    assert "backward transfer" in second
    assert "carried to the next round" in second


def test_the_figures_shown_are_those_of_the_lineage(learnt):
    report = Stream.open(learnt[0]).report
    last = learnt[1].split("after round ")[-1]
    for score in report.rounds[-1].scores:
        assert f"{100 * score.accuracy:.1f} %" in last
        assert f"{score.nll:.3f}" in last
    assert f"{100 * report.summary()['average_accuracy']:.1f} %" in last


def test_the_picture_is_one(learnt):
    assert (learnt[0] / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_command_again_trains_nothing(learnt, data, options, monkeypatch):
    monkeypatch.setattr(Trainer, "train", None)
    result = ok("stream", data, "--by", "at", "--every", "year", "--output", learnt[0], *options)
    assert [one["name"] for one in result["rounds"]] == ["2020", "2021"]
    assert result["summary"]["average_accuracy"] == pytest.approx(
        sum(s["accuracy"] for s in result["rounds"][1]["scores"]) / 2
    )


def test_new_rows_are_new_rounds(data, options, tmp_path):
    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    growing, out = tmp_path / "growing.jsonl", tmp_path / "out"
    asked = ("stream", growing, "--by", "at", "--every", "year", "--output", out, *options)
    write_jsonl(growing, rows[:24])
    assert len(ok(*asked)["rounds"]) == 1
    write_jsonl(growing, rows)
    done = call(*asked)
    assert "learnt before" in done.stdout
    assert "after round 1" not in done.stdout
    assert "after round 2 of 2, 2021" in done.stdout


def test_a_round_predicts_as_any_checkpoint(learnt, data, tmp_path):
    place = learnt[0] / "round-002-2021"
    result = ok("predict", place, "--data", data, "--output", tmp_path / "out", "--device", "cpu")
    assert result["metrics"]["rows"] == 48
    message = refused("predict", learnt[0], "--data", data, "--output", tmp_path / "no")
    assert "round-002-2021" in message


def test_a_dry_run_shows_the_rounds_and_writes_nothing(data, options, tmp_path):
    done = call("stream", data, "--rounds", 4, "--dry-run", "--output", tmp_path / "out", *options)
    assert done.exit_code == 0
    assert "rows 12 to 23" in done.stdout
    assert not (tmp_path / "out").exists()


def test_a_column_of_anything(data, options, tmp_path):
    """And rounds with outputs of their own, which `predict` cannot tell apart."""
    out = tmp_path / "out"
    asked = ("stream", data, "--by", "shop", "--heads", "per-round", "--max-rows", 8)
    result = ok(*asked, "--max-test-rows", 2, "--output", out, *options)
    assert {one["name"] for one in result["rounds"]} == {"a", "b"}
    assert [one["train_rows"] for one in result["rounds"]] == [8, 8]
    assert [s["n"] for s in result["rounds"][1]["scores"]] == [2, 2]
    place = out / result["rounds"][1]["folder"]
    message = refused("predict", place, "--data", data, "--output", tmp_path / "no")
    assert "Stream.open" in message


def test_a_folder_of_files_and_a_round_without_rows(options, tmp_path):
    write_jsonl(tmp_path / "data" / "1.jsonl", make_rows(12))
    (tmp_path / "data" / "2.jsonl").touch()
    done = call("stream", tmp_path / "data", "--output", tmp_path / "out", *options)
    assert done.exit_code == 0, done.stderr
    assert "after round 2 of 2, 2: no rows" in done.stdout


def test_splits_are_named(options, tmp_path):
    for seed, split in enumerate(("train", "test")):
        write_jsonl(tmp_path / "data" / f"{split}.jsonl", make_rows(20, seed))
    asked = ("stream", tmp_path / "data", "--rounds", 2, "--dry-run", "--output", tmp_path / "out")
    done = call(*asked, *options)
    assert "20 rows" in done.stdout
    assert "left alone: test" in done.stdout
    done = call(*asked, "--split", "train", "--split", "test", *options)
    assert "40 rows" in done.stdout
    assert "left alone" not in done.stdout


def test_text_goes_to_stderr_when_json_is_wanted(learnt, data, options):
    done = call(
        "stream", data, "--by", "at", "--every", "year", "--output", learnt[0], *options, "--json"
    )
    json.loads(done.stdout)
    assert "after round 2" in done.stderr


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("--every", "year"), "--by COLUMN"),
        (("--by", "at", "--every", "year", "--rounds", "2"), "choose one"),
        (("--by", "when"), "The columns are: shop, at"),
        (("--by", "shop", "--every", "day"), "row 0: the column 'shop' has"),
        (("--split", "train"), "a folder of rounds each file"),
        ((), "say how to cut one data set"),
        (("--rounds", "99"), "48 rows cannot make 99 rounds"),
        (("--by", "shop", "--weight", "0"), "weight is 0.0"),
        (("--by", "shop", "--test-share", "1.5"), "test share is 1.5"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_is_refused_before_any_work(data, options, tmp_path, asked, message):
    assert message in refused("stream", data, *asked, "--output", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_other_settings_in_the_same_folder(learnt, data, base):
    asked = ("stream", data, "--by", "at", "--every", "year", "--output", learnt[0])
    message = refused(*asked, "--model", base, *SMALL, "--epochs", 5)
    assert "settings.epochs was 1, and is now 5" in message


def test_changed_rows_in_the_same_folder(learnt, data, options):
    asked = ("stream", data, "--by", "at", "--every", "year", "--output", learnt[0], *options)
    message = refused(*asked, "--test-share", "0.5")
    assert "The round '2020' was learnt before (round-001-2020), and has changed" in message


def test_the_defaults_are_those_of_the_method():
    shown = inspect.signature(command.stream).parameters
    method = CarriedPosterior()
    for name in ("weight", "forget", "max_terms"):
        assert shown[name].default == getattr(method, name)


def test_help_explains():
    done = call("stream", "--help")
    assert done.exit_code == 0
    for word in ("backward transfer", "lineage.json", "--every", "Examples:", "--dry-run"):
        assert word in done.stdout
