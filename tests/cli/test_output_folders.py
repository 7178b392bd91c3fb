"""The commands and their output folders: nothing of somebody else's is lost, nothing old stays."""

from __future__ import annotations

import os
import shutil

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification

from posthoc_bhpeft.demo import run as demo
from tests.cli.tools import TINY, call, ok, refused
from tests.texts import make_base, make_folder

SMALL = (*TINY, "--epochs", "1", "--max-rows", "8", "--no-early-stopping")
FIXED = ("--prior", "fixed", "--precision", "1", "--max-rows", "8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def data(folder):
    return make_folder(folder / "data")


@pytest.fixture(scope="module")
def training(folder, data):
    return ("train", "--model", make_base(folder / "base"), "--data", data, *SMALL)


@pytest.fixture(scope="module")
def trained(training, folder):
    ok(*training, "--output", folder / "trained")
    return folder / "trained"


@pytest.fixture(scope="module")
def stock(folder, trained):
    """An adapter that peft trained and saved, without us."""
    model = AutoModelForSequenceClassification.from_pretrained(folder / "base", num_labels=2)
    get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=2)).save_pretrained(folder / "stock")
    return folder / "stock"


@pytest.fixture
def checkpoint(trained, tmp_path):
    """A checkpoint that a test may lose."""
    return shutil.copytree(trained, tmp_path / "checkpoint")


def contents(folder):
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("command", ["predict", "export-lora", "audit"])
@pytest.mark.parametrize("place", ["checkpoint", "."])
def test_a_checkpoint_is_not_replaced_by_what_is_made_of_it(checkpoint, tmp_path, command, place):
    before = contents(tmp_path)
    message = refused(command, checkpoint, "--output", tmp_path / place, "--overwrite")
    assert "this command reads" in message
    assert "Choose another" in message
    assert contents(tmp_path) == before


@pytest.mark.parametrize("command", ["predict", "export-lora", "audit"])
def test_nor_is_another_checkpoint(trained, checkpoint, stock, command):
    for other in (checkpoint, stock):
        before = contents(other)
        message = refused(command, trained, "--output", other, "--overwrite")
        assert "did not write as" in message
        assert contents(other) == before


def test_nor_the_data(trained, data, tmp_path):
    rows = shutil.copytree(data, tmp_path / "preds" / "rows")
    for named in (rows, rows / "test.jsonl"):
        reading = ("predict", trained, "--data", named, "--predictive", "map")
        assert "holds" in refused(*reading, "--output", tmp_path / "preds", "--overwrite")
    assert "this command reads" in refused("predict", trained, "--output", data, "--overwrite")
    assert contents(rows) == contents(data)


def test_a_training_replaces_neither_an_adapter_of_somebody_else_nor_its_data(
    training, stock, data, tmp_path
):
    theirs = shutil.copytree(stock, tmp_path / "theirs")
    for output, message in ((theirs, "did not write as a checkpoint"), (data, "command reads")):
        before = contents(output)
        assert message in refused(*training, "--output", output, "--overwrite")
        assert contents(output) == before


def test_predictions_and_exports_replace_those_of_an_earlier_run(trained, tmp_path):
    predicting = ("predict", trained, "--predictive", "map", "--output", tmp_path / "preds")
    exporting = ("export-lora", trained, "--output", tmp_path / "lora")
    for command in (predicting, exporting):
        ok(*command)
        assert "--overwrite" in refused(*command)
        ok(*command, "--overwrite")
    assert names(tmp_path) == ["lora", "preds"]


def test_the_demo_replaces_nothing_but_a_demo(stock, tmp_path, monkeypatch):
    def work(*given, **named):
        pytest.fail("began to work")

    monkeypatch.setattr(demo, "resolve_model", work)
    theirs = shutil.copytree(stock, tmp_path / "theirs")
    results = tmp_path / "results"
    results.mkdir()
    (results / "results.json").write_text("{}", encoding="utf-8")
    for output in (theirs, results):
        before = contents(output)
        assert "did not write as a demonstration" in refused("demo", "--output", output)
        assert contents(output) == before


def test_a_fit_leaves_nothing_of_an_earlier_one_of_another_checkpoint(
    trained, stock, data, tmp_path
):
    fitting = ("fit", stock, "--data", data, *FIXED)
    ok("fit", trained, "--output", tmp_path / "used", *FIXED)
    (tmp_path / "used" / "review.json").write_text("{}", encoding="utf-8")
    assert {"training.json", "tokenizer.json"} <= {*names(tmp_path / "used")}
    ok(*fitting, "--output", tmp_path / "fresh")
    ok(*fitting, "--output", tmp_path / "used", "--overwrite")
    assert names(tmp_path / "used") == names(tmp_path / "fresh")
    assert not (tmp_path / "used" / "training.json").exists()
    assert names(tmp_path) == ["fresh", "used"]


def test_a_fit_that_fails_leaves_the_earlier_one(trained, tmp_path, monkeypatch):
    output = tmp_path / "fitted"
    ok("fit", trained, "--output", output, *FIXED)
    before = contents(output)

    def full(*given, **named):
        raise OSError("no room")

    monkeypatch.setattr("posthoc_bhpeft.cli.fit.shutil.copyfile", full)
    assert "no room" in refused("fit", trained, "--output", output, *FIXED, "--overwrite")
    assert contents(output) == before
    assert names(tmp_path) == ["fitted"]


def test_a_fit_in_a_checkpoint_that_cannot_be_written_to_ends_at_once(trained, monkeypatch):
    def full(*given, **named):
        raise PermissionError("Permission denied")

    monkeypatch.setattr("tempfile.mkdtemp", full)
    assert "Nothing can be written into" in refused("fit", trained, *FIXED)


def test_the_current_folder_and_a_link_are_outputs_too(training, trained, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    ok(*training, "--output", ".")
    assert names(tmp_path / "here") == names(trained)
    monkeypatch.chdir(tmp_path)
    ok(*training, "--output", "link", "--overwrite")
    assert names(tmp_path / "here") == names(trained)
    assert names(tmp_path) == ["here", "link"]


@pytest.mark.skipif(not os.path.ismount("/proc"), reason="needs a place where nobody may write")
def test_an_output_that_cannot_be_made_ends_before_the_training(training, tmp_path, monkeypatch):
    def work(*given, **named):
        pytest.fail("began to work")

    monkeypatch.setattr("posthoc_bhpeft.training.train", work)
    (tmp_path / "file.txt").touch()
    assert "is a file" in refused(*training, "--output", tmp_path / "file.txt" / "out")
    assert "Nothing can be written" in refused(*training, "--output", "/proc/bhpeft/out")


def test_a_damaged_adapter_is_named(stock, data, tmp_path):
    cut = shutil.copytree(stock, tmp_path / "cut") / "adapter_model.safetensors"
    cut.write_bytes(cut.read_bytes()[:100])
    for command in (("fit", cut.parent, "--data", data), ("import", cut.parent)):
        message = refused(*command, "--output", tmp_path / "out")
        assert f"{str(cut)!r} is damaged or cut off" in message
    assert names(tmp_path) == ["cut"]


def test_no_draws_are_refused(trained, tmp_path):
    drawing = ("predict", trained, "--predictive", "sampled", "--samples", 0)
    done = call(*drawing, "--output", tmp_path / "out")
    assert done.exit_code == 2
    assert "--samples" in done.stderr
