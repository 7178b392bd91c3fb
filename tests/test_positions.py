"""How many tokens a base can read: what a model says itself, and what a training does about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    CanineConfig,
    IBertConfig,
    MptConfig,
)

from posthoc_bhpeft.data import load_rows
from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.training import TrainingSettings, train
from posthoc_bhpeft.training.positions import check_positions, most_tokens
from tests.cli.tools import TINY, call, ok, refused
from tests.hybrid.families import FIRST_WORD, POSITIONS
from tests.tasks.tiny import base_folder
from tests.tasks.words import make_base, write_rows
from tests.texts import make_base as small_base
from tests.texts import write_jsonl

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 24,
}
LIMITED = {"bert": 64, "roberta": 62, "distilbert": 64, "gpt2": 64, "opt": 64, "mpnet": 62}
OTHERS = {
    "mpt": (MptConfig(vocab_size=40, d_model=16, n_heads=2, n_layers=1, max_seq_len=24), 24),
    "ibert": (IBertConfig(**SIZES, pad_token_id=1), 22),
    "canine": (CanineConfig(**SIZES, num_hash_buckets=32), 24),
}
ENDLESS = ("llama", "qwen2", "t5")


def reads(folder: Path, tokens: int) -> bool:
    """Whether a model reads a text of so many tokens."""
    ids = torch.full((1, tokens), FIRST_WORD)
    model: Any = AutoModel.from_pretrained(folder).eval()
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    try:
        with torch.no_grad():
            model(input_ids=ids, attention_mask=torch.ones_like(ids), **more)
    except (RuntimeError, IndexError):
        return False
    return True


@pytest.mark.parametrize("family", LIMITED)
def test_the_limit_is_the_longest_text_that_a_model_reads(family: str) -> None:
    folder = base_folder("AutoModel", family)
    limit = most_tokens(str(folder))
    assert limit == LIMITED[family]
    assert reads(folder, limit)
    assert not reads(folder, limit + 1)


@pytest.mark.parametrize("name", OTHERS)
def test_so_it_is_where_positions_are_kept_in_other_ways(name: str, tmp_path: Path) -> None:
    config, limit = OTHERS[name]
    config.save_pretrained(tmp_path)
    assert most_tokens(str(tmp_path)) == limit


@pytest.mark.parametrize("family", ENDLESS)
def test_rotary_and_relative_positions_have_no_limit(family: str) -> None:
    folder = base_folder("AutoModel", family)
    assert most_tokens(str(folder)) is None
    assert reads(folder, 2 * POSITIONS)


def test_a_base_that_cannot_be_looked_at_has_no_limit_that_is_known(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "of nobody"}', encoding="utf-8")
    assert most_tokens(str(tmp_path)) is None
    check_positions("anything", 10**6, None)
    with pytest.raises(ConfigError, match="positions for 64 tokens only"):
        check_positions("anything", 65, 64)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of which some are longer than any tiny base has positions."""
    rows = [{"text": "ice fire " * (3 if n % 3 else 90), "label": n % 2} for n in range(12)]
    return write_rows(tmp_path_factory.mktemp("long") / "rows.jsonl", rows)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_long_texts_are_cut_at_what_the_model_reads(
    family: str, data: Path, tmp_path: Path
) -> None:
    base, out = make_base(tmp_path / "base", "AutoModel", family), tmp_path / "out"
    said = ok("train", "--model", base, "--data", data, "--output", out, *TINY, "--epochs", 1)
    limit = LIMITED[family]
    assert any(f"cut at {limit} tokens rather than 128" in note for note in said["notes"])
    record = json.loads((out / "training.json").read_text("utf-8"))
    assert record["settings"]["max_length"] == limit
    ok("predict", out, "--predictive", "map", "--output", tmp_path / "preds")


def test_a_length_that_the_model_cannot_read_is_refused(data: Path, tmp_path: Path) -> None:
    base, out = make_base(tmp_path / "base", "AutoModel", "bert"), tmp_path / "out"
    options = ("--model", base, "--data", data, "--output", out, *TINY, "--epochs", 1)
    message = refused("train", *options, "--max-length", 65)
    assert "--max-length 65" in message
    assert "positions for 64 tokens only" in message
    assert not out.exists()
    assert not any("cut at" in note for note in ok("train", *options, "--max-length", 64)["notes"])


def test_an_endless_model_takes_any_length(data: Path, tmp_path: Path) -> None:
    base, out = make_base(tmp_path / "base", "AutoModel", "llama"), tmp_path / "out"
    options = ("--model", base, "--data", data, "--output", out, *TINY, "--epochs", 1)
    ok("train", *options, "--max-length", 150)
    record = json.loads((out / "training.json").read_text("utf-8"))
    assert record["settings"]["max_length"] == 150


def test_python_cuts_there_too(data: Path, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "AutoModel", "bert")
    settings = TrainingSettings(epochs=1, max_length=600, rank=2, peft="lora")
    rows = load_rows(data)
    found = train(str(base), rows, settings=settings, progress=False, device="cpu")
    assert found.record.settings.max_length == 64


def long_rows(tmp_path: Path) -> Path:
    """Rows longer than tiny bases have positions, in two rounds."""
    rows = [
        {"text": " ".join(["the", "meal"] * 40), "label": n % 2, "shop": "ab"[n // 12]}
        for n in range(24)
    ]
    return write_jsonl(tmp_path / "rows.jsonl", rows)


def test_a_stream_cuts_texts_where_positions_end(tmp_path: Path) -> None:
    base, data = small_base(tmp_path / "base"), long_rows(tmp_path)
    asked = ("stream", data, "--by", "shop", "--model", base, *TINY, "--epochs", "1")
    assert "positions for 32 tokens" in refused(
        *asked, "--output", tmp_path / "none", "--max-length", 33
    )
    assert not (tmp_path / "none").exists()
    done = call(*asked, "--output", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    assert "cut at 32 tokens rather than 128" in done.output


def test_a_checkpoint_of_others_is_read_where_positions_end(tmp_path: Path) -> None:
    base = small_base(tmp_path / "base")
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    config = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])
    get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    data = long_rows(tmp_path)
    done = call("fit", tmp_path / "adapter", "--data", data, "--output", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
