"""The documentation runs: every Python block of the pages that promise it, in order."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import typer
from transformers import AutoModel

from posthoc_bhpeft import BayesianPeft
from posthoc_bhpeft.audit import Rules, read_predictions
from posthoc_bhpeft.audit.decisions.guarantees import rows_for_rate, rows_without_error
from posthoc_bhpeft.audit.report.drawings import drawings
from posthoc_bhpeft.audit.report.page import sections
from posthoc_bhpeft.audit.report.verdict import NOT_YET, READY, REVIEW, UNCLEAR
from posthoc_bhpeft.cli import app
from posthoc_bhpeft.data import TextData
from posthoc_bhpeft.demo import satisfaction
from tests.audit.test_report import full
from tests.cli.tools import TINY, call, ok
from tests.contracts import check_block
from tests.tasks.test_writing import checkpoint_of, make_rows
from tests.tasks.words import write_rows

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
AUDIT = ROOT / "docs" / "audit.md"
COMMAND = re.compile(r"^\$ (bhpeft .*?)(?: +#.*)?$", re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#]+)")


def python_blocks(page: Path) -> list[tuple[int, str]]:
    """Each block with its first line, so that an error points into the page."""
    text = page.read_text(encoding="utf-8")
    return [(text[: m.start(1)].count("\n"), m.group(1)) for m in FENCE.finditer(text)]


def run(page: Path) -> dict[str, Any]:
    scope: dict[str, Any] = {}
    for line, block in python_blocks(page):
        exec(compile("\n" * line + block, str(page), "exec"), scope)
    return scope


def test_extending(capsys: pytest.CaptureFixture[str]) -> None:
    scope = run(ROOT / "docs" / "extending.md")
    assert [block.name for block in scope["blocks"] if block.kind.value == "other"][:1]
    assert "for 2 effective parameters" in capsys.readouterr().out
    probabilities = scope["prediction"].probabilities
    assert probabilities.equal(scope["again"].predict(scope["loader"][0]).probabilities)


def test_generation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a tiny model that writes, and its base, in folders of the names on the page."""
    checkpoint_of("decoder", tmp_path).rename(tmp_path / "writer")
    (tmp_path / "writer-base").symlink_to(tmp_path / "a" / "base")
    for split in ("train", "test"):
        write_rows(tmp_path / "pairs" / f"{split}.jsonl", make_rows(6))
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs" / "generation.md"
    scope = run(page)
    assert len(scope["loader"].dataset) == 6
    assert "Prior precision from the weights that the data can see" in capsys.readouterr().out
    assert len(scope["rows"]) == 8 * 11
    found = scope["generation"]
    assert found.tokens.shape == found.epistemic.shape == found.mask.shape
    assert bool((found.sequence_epistemic > 0).all())
    commands = [shlex.split(said)[1:] for said in COMMAND.findall(page.read_text("utf-8"))]
    assert [words[0] for words in commands] == ["fit", "predict"]
    for words in commands:
        ok(*words)
    assert (tmp_path / "texts" / "predictions.jsonl").is_file()


def test_the_custom_layer_has_the_right_gradient() -> None:
    scope = run(ROOT / "docs" / "extending.md")
    model = torch.nn.Sequential(scope["Scale"](4), torch.nn.Linear(4, 2)).double()
    (block,) = scope["scale_blocks"]("0", model[0])
    given = (torch.randn(6, 4, dtype=torch.float64), torch.zeros(6, dtype=torch.long))
    check_block(model, block, given)


def test_the_example_of_the_readme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a tiny model and a few rows in the place of those from the hub."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    rows = importlib.import_module("rows")
    base = importlib.import_module("tiny").tiny_base(tmp_path / "base", rows.TEXTS)
    table = datasets.Dataset.from_dict({"text": rows.TEXTS, "label": rows.LABELS})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: datasets.DatasetDict(train=table))
    monkeypatch.chdir(tmp_path)
    page = ROOT / "README.md"
    line, block = next(found for found in python_blocks(page) if "bayesianize(" in found[1])
    scope: dict[str, Any] = {}
    exec(compile("\n" * line + block.replace("roberta-base", base), str(page), "exec"), scope)
    assert "Laplace posterior over" in capsys.readouterr().out
    assert scope["bayes"].posterior.n_rows == len(rows.TEXTS)


@pytest.mark.slow
def test_streams(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page with a tiny model in the place of MiniLM, fewer messages and one epoch."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    base = importlib.import_module("tiny").tiny_base(tmp_path / "base", satisfaction().texts)
    AutoModel.from_pretrained(base).save_pretrained(base)  # like MiniLM's: without a head
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs" / "streams.md"
    shorter = {
        '"minilm"': repr(base),
        "epochs=6": "epochs=1",
        "satisfaction(),": "satisfaction().draw(150, 0),",
    }
    scope: dict[str, Any] = {}
    for line, block in python_blocks(page):
        for long, short in shorter.items():
            block = block.replace(long, short)
        exec(compile("\n" * line + block, str(page), "exec"), scope)
    said = capsys.readouterr().out
    assert "Prior carried over from an earlier posterior, curvature in 22 of 22 blocks" in said
    assert "round-005-" in said
    assert "Merged from 2 posteriors" in said
    assert len(scope["report"].rounds) == len(scope["rounds"]) == 5
    assert set(scope["bayes"].posterior.prior.carried) == {b.name for b in scope["bayes"].blocks}


def write_split(folder: Path, split: str, rows: TextData) -> None:
    """Rows as a file, cut to what the tiny model can hold."""
    names = rows.label_names or ()
    lines = [
        json.dumps({"text": " ".join(text.split()[:20]), "label": label}) + "\n"
        for text, label in zip(rows.texts, rows.labels or (), strict=True)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "meta.json").write_text(json.dumps({"label_names": names}), encoding="utf-8")


@pytest.fixture
def demo_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `bhpeft demo --output out` leaves, of a tiny model; the working folder is above it."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.chdir(tmp_path)
    base = importlib.import_module("tiny").tiny_base(tmp_path / "base", satisfaction().texts)
    test, rest = satisfaction().split_off(0.8, seed=0)
    write_split(tmp_path / "out" / "data", "test", test)
    write_split(tmp_path / "out" / "data", "train", rest.draw(60, 0))
    place = tmp_path / "out" / "checkpoint"
    small = ("--data", tmp_path / "out" / "data", "--epochs", "1", *TINY)
    ok("train", "--model", base, "--output", place, *small)
    ok("fit", place)
    return tmp_path


@pytest.mark.slow
def test_audits(demo_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The Python of the page with a tiny model in the place of the demo's."""
    scope = run(AUDIT)
    levels = capsys.readouterr().out.strip().splitlines()
    assert len(levels) == 3
    assert {*levels} <= {READY, REVIEW, NOT_YET, UNCLEAR}
    assert (demo_folder / "report" / "report.html").stat().st_size > 50_000
    assert scope["prediction"].review.shape == (len(scope["prediction"].probabilities),)
    assert scope["prediction"].sets.shape == scope["prediction"].probabilities.shape
    kept = BayesianPeft.from_pretrained(demo_folder / "out" / "bayes").review_rule
    assert kept == scope["bayes"].review_rule


@pytest.mark.slow
def test_the_commands_of_the_audits_page(demo_folder: Path) -> None:
    """Every command of the page, in order; only those with a gate may stop a pipeline."""
    commands = [shlex.split(said)[1:] for said in COMMAND.findall(AUDIT.read_text("utf-8"))]
    assert commands.pop(0) == ["demo", "--output", "out"]
    assert len(commands) > 4
    for words in commands:
        shorter = ["--resamples", "20"] if words[0] == "audit" else []
        done = call(*words, *shorter)
        expected = (0, 3) if "--fail-if" in words else (0,)
        assert done.exit_code in expected, f"{shlex.join(words)}: {done.output}"
    answers = (demo_folder / "answers" / "predictions.jsonl").read_text("utf-8").splitlines()
    assert {"review", "set"} <= {*json.loads(answers[0])}


def test_the_file_of_the_audits_page_can_be_read(tmp_path: Path) -> None:
    (example,) = re.findall(
        r"^```csv\n(.*?)^```", AUDIT.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    (tmp_path / "predictions.csv").write_text(example, encoding="utf-8")
    found = read_predictions(tmp_path / "predictions.csv")
    assert found.right.all()
    assert found.label_names == ("no", "yes")
    assert found.columns == {"shop": ("north", "south")}


def options_of(commands: Sequence[str]) -> set[str]:
    group: Any = typer.main.get_command(app)
    return {
        option for name in commands for one in group.commands[name].params for option in one.opts
    }


def test_options_that_the_audits_page_names_exist() -> None:
    named = re.findall(r"(?<![\w-])--[a-z][a-z-]+", AUDIT.read_text("utf-8"))
    assert len({*named}) > 10
    assert {*named} <= options_of(("audit", "predict", "demo"))


def test_the_audits_page_has_every_level_border_and_section() -> None:
    text = AUDIT.read_text("utf-8")
    assert not [level for level in (READY, REVIEW, NOT_YET, UNCLEAR) if f"**{level}" not in text]
    rules = Rules()
    assert f"| {rules.rows} labelled rows or more |" in text
    assert f"is at most {100 * rules.error_rate:g} % |" in text
    assert f"is at most {rules.calibration:.2f} |" in text
    assert f"removes](metrics.md#errors_removed_at_10) more than {100 * rules.removed:g} %" in text
    assert f"(p of {rules.label_shift:.2f} or more)" in text
    assert f"lower end is at most {rules.told_apart:.2f} |" in text
    everything = full()
    titles = [section.title for section in sections(everything, drawings(everything))]
    assert not [title for title in titles if f"| {title} |" not in text]


def test_the_rows_that_the_audits_page_says_a_promise_takes() -> None:
    text = AUDIT.read_text("utf-8")
    assert f"| none | {rows_without_error(0.05, 0.95)} |" in text
    for rate in (0.01, 0.02, 0.025, 0.03, 0.04):
        assert f"| {100 * rate:g} % | {rows_for_rate(rate, 0.05, 0.05):,} |" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_are_python(page: Path) -> None:
    for line, block in python_blocks(page):
        compile("\n" * line + block, str(page), "exec")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_inside_the_docs_lead_somewhere(page: Path) -> None:
    targets = LINK.findall(page.read_text(encoding="utf-8"))
    assert not [target for target in targets if not (page.parent / target).exists()]


def test_files_that_the_mathematics_names_exist() -> None:
    text = (ROOT / "docs" / "mathematics.md").read_text(encoding="utf-8")
    named = re.findall(r"\[`([\w/]+(?:\.py|/))`\]", text)
    assert len(named) > 8
    assert not [name for name in named if not (ROOT / "posthoc_bhpeft" / name).exists()]
