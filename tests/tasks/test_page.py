"""docs/tasks.md runs, with a tiny model and a few questions in the place of real ones."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from posthoc_bhpeft.tasks import AnswerTokens
from tests.cli.tools import ok
from tests.hybrid.families import tiny_config
from tests.tasks import labelled, tagged
from tests.tasks.words import make_questions, tokenizer, write_rows
from tests.test_docs import COMMAND, ROOT, run

PAGE = ROOT / "docs" / "tasks.md"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a base and questions of the names that the page uses."""
    monkeypatch.chdir(tmp_path)
    words = tokenizer()
    words.save_pretrained("base")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(tiny_config("llama", vocab_size=len(words))).save_pretrained("base")
    for seed, split in enumerate(("train", "test")):
        write_rows(tmp_path / "arc_easy" / f"{split}.jsonl", make_questions(16, seed))
        write_rows(tmp_path / "ner" / f"{split}.jsonl", tagged.make_rows(12, seed))
        write_rows(tmp_path / "go_emotions" / f"{split}.jsonl", emotions(24, seed))
    tagged.make_base(tmp_path / "encoder")
    return tmp_path


def emotions(count: int, seed: int) -> list[dict[str, Any]]:
    """Rows with several labels, by the name that the page audits."""
    called = {"good": "joy", "bad": "anger"}
    rows = labelled.make_rows(count, seed)
    return [{**row, "labels": [called[name] for name in row["labels"]]} for row in rows]


def test_the_page(here: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        scope = run(PAGE)
    assert scope["bayes"].model.task == AnswerTokens.of(tokenizer(), ("A", "B", "C", "D"))
    assert scope["prediction"].probabilities.shape == (16, 4)
    batch = next(iter(scope["batches"]))
    prompts = {name: batch[name] for name in ("input_ids", "attention_mask")}
    assert scope["own"](**prompts).shape == (16, 1)
    assert scope["words"].probabilities.shape == (sum(map(len, scope["rows"].words)), 3)
    commands = [shlex.split(said)[1:] for said in COMMAND.findall(PAGE.read_text("utf-8"))]
    told = [*("train", "fit", "predict", "audit") * 3, *("fit", "predict") * 2]
    assert [words[0] for words in commands] == told
    (here / "answers").rename(here / "my-lora")
    for words in commands:
        ok(*words)
    for folder in ("answers", "felt", "predictions", "tags"):
        assert (here / folder / "predictions.jsonl").is_file()
    for folder in ("joy-report", "report", "tags-report"):
        assert (here / folder / "report.html").is_file()
