"""Options that mean nothing, or that would be left unread: refused before any work."""

from __future__ import annotations

import math

import pytest

from posthoc_bhpeft.cli.predictions import write_rows
from posthoc_bhpeft.errors import NonFiniteError
from tests.cli.tools import TINY, call, ok, refused
from tests.texts import make_base, make_folder, make_rows, write_jsonl

SMALL = (*TINY, "--epochs", "1")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Two columns with texts and two with labels."""
    rows = [
        {**row, "body": f"a {row['text']}", "other": n // 2 % 2}
        for n, row in enumerate(make_rows(24))
    ]
    return write_jsonl(tmp_path_factory.mktemp("table") / "rows.jsonl", rows)


@pytest.fixture(scope="module")
def trained(base, table, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "out"
    columns = ("--text-column", "text", "--label-column", "label")
    ok("train", "--model", base, "--data", table, "--output", out, *columns, *SMALL)
    return out


@pytest.mark.parametrize(
    "command",
    [
        ("estimate", "x", "--rows", 0),
        ("estimate", "x", "--rows", -3),
        ("estimate", "x", "--max-length", 0),
        ("estimate", "x", "--memory", -1),
        ("fit", "x", "--batch-size", 0),
        ("fit", "x", "--seed", -1),
        ("predict", "x", "--output", "y", "--batch-size", -1),
        ("predict", "x", "--output", "y", "--seed", -1),
        ("audit", "x", "--batch-size", 0),
        ("audit", "x", "--seed", -1),
        ("train", "--data", "x", "--output", "y", "--batch-size", 0),
        ("train", "--data", "x", "--output", "y", "--seed", -1),
        ("train", "--data", "x", "--output", "y", "--seed", 2**32),
    ],
    ids=lambda command: " ".join(map(str, (command[0], *command[-2:]))),
)
def test_numbers_that_no_option_takes(command):
    done = call(*command)
    assert done.exit_code == 2
    assert f"Invalid value for '{command[-2]}'" in done.output


@pytest.mark.parametrize(
    "options",
    [
        ("--text-column", "body"),
        ("--text-pair-column", "body"),
        ("--label-column", "other"),
        ("--label-columns", "label,other"),
        ("--label-separator", ","),
        ("--response-column", "body"),
        ("--drop-unlabelled",),
        ("--text-column", "no such column"),
    ],
    ids=" ".join,
)
def test_a_fit_on_the_training_rows_reads_them_as_the_training_did(trained, options):
    message = refused("fit", trained, *options)
    assert message.startswith(f"error: {options[0]}: without --data")
    assert "Name the data too (--data " in message


def test_columns_go_with_the_data_and_those_of_the_training_with_it(trained, table, tmp_path):
    same = ok("fit", trained, "--text-column", "text", "--output", tmp_path / "a")
    options = ("--data", table, "--text-column", "body", "--label-column", "other")
    other = ok("fit", trained, *options, "--output", tmp_path / "b")
    assert other["digest"] != same["digest"]


def test_columns_that_the_training_found_by_itself_may_be_named(base, tmp_path):
    data, out = write_jsonl(tmp_path / "rows.jsonl", make_rows(36)), tmp_path / "out"
    ok("train", "--model", base, "--data", data, "--output", out, *SMALL)
    expected = ok("fit", out)
    found = ok("fit", out, "--text-column", "text", "--label-column", "label")
    assert found["digest"] == expected["digest"]
    assert "--text-column: without --data" in refused("fit", out, "--text-column", "shop")


def test_a_training_without_validation_rows_has_none_held_out(base, table, tmp_path):
    out = tmp_path / "out"
    options = ("--no-early-stopping", "--max-rows", 12)
    ok("train", "--model", base, "--data", table, "--output", out, *options, *SMALL)
    # Naming the data again names no others.
    for named in ((), ("--data", table)):
        message = refused("fit", out, "--prior", "held-out", *named)
        assert "Train anew without --no-early-stopping" in message
        assert "--prior left-out needs none" in message
        assert "Name the data" not in message


def test_options_of_the_prior_are_checked_before_rows_are_read(trained):
    assert "go together" in refused("fit", trained, "--prior", "fixed", "--data", "./no.csv")


def test_a_link_is_for_classes(base, tmp_path):
    rows = [{**row, "label": 2.0 * row["label"] + 0.5} for row in make_rows(24)]
    path, out = write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "out"
    ok("train", "--model", base, "--data", path, "--output", out, *SMALL)
    ok("fit", out)
    for link in ("probit", "log-odds", "bridge"):
        message = refused("predict", out, "--link", link, "--output", tmp_path / "preds")
        assert "this model predicts numbers" in message
    assert not (tmp_path / "preds").exists()


def test_the_advice_about_labels_is_of_options_that_there_are(base, tmp_path):
    rows = [
        {"text": row["text"], "label": [1, 0, None][n % 3]} for n, row in enumerate(make_rows(9))
    ]
    path, out = write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "out"
    message = refused("train", "--model", base, "--data", path, "--output", out)
    assert "Drop these rows with --drop-unlabelled" in message
    assert "`bhpeft predict --ignore-labels`" in message


def test_an_empty_cell_for_a_text_tells_how_to_go_on(base, tmp_path):
    path, out = tmp_path / "rows.csv", tmp_path / "out"
    path.write_text("text,label\nfine,1\n,0\nlate,0\n,1\n", encoding="utf-8")
    message = refused("train", "--model", base, "--data", path, "--output", out)
    assert "row 1 has nothing as its text in the column 'text', as 2 of 4 rows have" in message
    assert "dropna(subset=['text'])" in message


def test_a_temperature_is_not_fitted_on_rows_that_were_learnt(base, tmp_path):
    data, out = make_folder(tmp_path / "data"), tmp_path / "out"
    options = ("--train-split", "validation", "--no-early-stopping")
    ok("train", "--model", base, "--data", data, "--output", out, *options, *SMALL)
    message = refused("audit", out, "--compare", "temperature")
    assert message.strip().endswith("Name another split with --held-out: train.")
    ok("audit", out, "--compare", "temperature", "--held-out", "train", "--resamples", 20)


@pytest.mark.parametrize("wrong", [math.nan, [0.5, math.nan]])
def test_a_prediction_that_is_no_number_is_not_written(tmp_path, wrong):
    rows = [{"index": 4, "probabilities": [0.5, 0.5]}, {"index": 7, "probabilities": wrong}]
    with pytest.raises(NonFiniteError, match=r"predictions\.jsonl: probabilities of row 7 are NaN"):
        write_rows(tmp_path / "predictions.jsonl", rows)
    write_rows(tmp_path / "predictions.jsonl", [{"index": 1, "nll": math.inf, "name": None}])
