"""A tiny base model with its tokenizer in a folder, and rows of words it can learn at once."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import torch

GOOD, BAD = ("fine", "kind", "quick", "warm"), ("late", "rude", "slow", "cold")
PLAIN = ("the", "service", "was", "a", "train", "meal", "and", "it")
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", *PLAIN, *GOOD, *BAD)


def make_base(
    folder: Path, words: Sequence[str] = WORDS, kind: str = "BertForSequenceClassification"
) -> Path:
    """A BERT of two layers that knows twenty words, or others."""
    import transformers

    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        # Words must differ enough for a head and small adapters to tell them apart.
        initializer_range=0.3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        getattr(transformers, kind)(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    transformers.BertTokenizer.from_pretrained(str(folder)).save_pretrained(str(folder))
    return folder


def make_rows(count: int, seed: int = 0) -> list[dict[str, object]]:
    """Rows whose label is told by one word of theirs."""
    stream = random.Random(seed)
    rows = []
    for number in range(count):
        label = number % 2
        words = [stream.choice(PLAIN) for _ in range(stream.randint(2, 9))]
        words.insert(stream.randint(0, len(words)), stream.choice(GOOD if label else BAD))
        rows.append({"text": " ".join(words), "label": label, "shop": stream.choice("ab")})
    return rows


def write_jsonl(path: Path, rows: list[dict[str, object]]) -> Path:
    """Rows as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def make_folder(folder: Path) -> Path:
    """Train, validation and test splits with names for the labels."""
    for seed, (split, count) in enumerate({"train": 64, "validation": 24, "test": 21}.items()):
        write_jsonl(folder / f"{split}.jsonl", make_rows(count, seed))
    (folder / "meta.json").write_text('{"label_names": ["bad", "good"]}', encoding="utf-8")
    return folder
