"""The documentation runs: every Python block of the pages that promise it, in order."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import AutoModel

from posthoc_bhpeft.demo import satisfaction
from tests.contracts import check_block

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
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
