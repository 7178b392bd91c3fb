"""`bhpeft audit --label`: one of several labels a row, as a question of two classes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from posthoc_bhpeft import BayesianPeft
from posthoc_bhpeft.audit import Plan, Predictions, audit
from posthoc_bhpeft.checkpoints import load_tokenizer
from posthoc_bhpeft.data import load_rows, make_loader
from tests import texts
from tests.cli.tools import TINY, ok, refused
from tests.tasks.labelled import make_rows
from tests.tasks.test_commands import lines
from tests.tasks.words import write_rows

FAST = ("--resamples", 20)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for seed, (split, count) in enumerate({"train": 40, "validation": 30, "test": 40}.items()):
        write_rows(folder / f"{split}.jsonl", make_rows(count, seed))
    return folder


@pytest.fixture(scope="module")
def fitted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    base, out = texts.make_base(folder / "base"), folder / "out"
    options = (*TINY, "--epochs", 3, "--batch-size", 8)
    ok("train", "--model", base, "--data", data, "--output", out, *options)
    ok("fit", out, "--prior", "fixed", "--precision", 3)
    return out


def by_hand(folder: Path, index: int) -> float:
    """NLL a row of one label, from a file of predictions."""
    found = lines(folder)
    p = torch.tensor([row["probabilities"][index] for row in found]).double()
    truth = torch.tensor([row["label"][index] for row in found])
    return float(-torch.where(truth > 0, p, 1 - p).log().mean())


@pytest.fixture(scope="module")
def predicted(fitted: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("predicted")
    ok("predict", fitted, "--output", folder / "ours")
    ok("predict", fitted, "--predictive", "map", "--output", folder / "map")
    return {"ours": folder / "ours", "MAP": folder / "map"}


@pytest.mark.parametrize(("index", "name"), [(0, "bad"), (1, "good")])
def test_figures_are_those_of_the_label(
    index: int, name: str, fitted: Path, predicted: dict[str, Path]
) -> None:
    found = ok("audit", fitted, "--label", name, *FAST)
    for who, folder in predicted.items():
        figure = found["figures"][who]["nll"]["estimate"]
        assert figure == pytest.approx(by_hand(folder, index), rel=1e-4)


def test_the_page_names_both_answers(fitted: Path, tmp_path: Path) -> None:
    ok("audit", fitted, "--label", "good", "--output", tmp_path / "report", *FAST)
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "not good" in page


def test_it_is_the_audit_of_an_answer_in_python(fitted: Path, data: Path) -> None:
    bayes = BayesianPeft.from_pretrained(fitted)
    rows = load_rows(data, "test", multi_label=None)
    loader = make_loader(rows, load_tokenizer(fitted))
    answer = bayes.predict_loader(loader, progress=False).answer(1)
    direct = audit(Predictions.of(answer), plan=Plan(resamples=20))
    found = ok("audit", fitted, "--label", "good", *FAST)
    for name, figure in found["figures"]["ours"].items():
        expected = direct.to_dict()["figures"]["predictions"][name]["estimate"]
        assert figure["estimate"] == pytest.approx(expected, rel=1e-3, abs=1e-4, nan_ok=True)


def test_everything_that_is_compared_is_about_the_label(
    fitted: Path, data: Path, tmp_path: Path
) -> None:
    outside = write_rows(tmp_path / "outside.jsonl", [{"text": "it a train and"}] * 5)
    options = ("--compare", "map", "--compare", "temperature", "--outside", outside)
    further = ("--reference", "validation", "--held-out", "validation", "--by", "true class")
    found = ok("audit", fitted, "--label", "good", *options, *further, *FAST)
    assert len(found["figures"]) == 3
    shutil.copytree(fitted, tmp_path / "copy")
    both = ok("audit", fitted, tmp_path / "copy", "--label", "good", *FAST)["figures"]
    assert set(both) == {"out", "copy"}
    assert both["out"] == both["copy"]
    assert both["out"]["nll"] == found["figures"]["ours"]["nll"]


def test_a_model_without_posterior(fitted: Path, data: Path, tmp_path: Path) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors", "training.json"):
        (tmp_path / name).write_bytes((fitted / name).read_bytes())
    found = ok("audit", tmp_path, "--label", "bad", "--data", data, *FAST)
    both = ok("audit", fitted, "--label", "bad", *FAST)
    (alone,) = found["figures"].values()
    expected = both["figures"]["MAP"]["nll"]["estimate"]
    assert alone["nll"]["estimate"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "Name it with --label, one of bad, good"),
        (("--label", "odd"), "Name it with --label, one of bad, good"),
        (("--label", "bad", "--save-review", "error"), "Leave one of them out"),
        (("--label", "bad", "--label-columns", "a,b"), "no column 'a', 'b'"),
    ],
)
def test_what_makes_no_sense(options: Any, message: str, fitted: Path) -> None:
    assert message in refused("audit", fitted, *options)


def test_a_label_is_asked_of_models_that_have_several(
    predicted: dict[str, Path], tmp_path: Path
) -> None:
    data, out = texts.make_folder(tmp_path / "data"), tmp_path / "out"
    base = texts.make_base(tmp_path / "base")
    options = (*TINY, "--epochs", 1, "--max-rows", 8, "--no-early-stopping")
    ok("train", "--model", base, "--data", data, "--output", out, *options)
    assert "leave out --label" in refused("audit", out, "--label", "good")
    file = predicted["ours"] / "predictions.jsonl"
    assert "leave out --label" in refused("audit", file, "--label", "good")
    assert "one at a time" in refused("audit", file)
