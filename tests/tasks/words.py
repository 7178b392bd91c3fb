"""Questions of a few words, a tokenizer that knows them, and checkpoints that others trained."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.hybrid.families import tiny_config
from tests.models import randomize

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
WORDS = ("Question", "Answer", "which", "is", "hot", "cold", "fire", "ice", "snow", "sun", "stone")
SIGNS = (":", ".", "?", "_", *"ABCDE")


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word or sign; letters with and without a space before them are the same."""
    vocabulary = {word: index for index, word in enumerate((*SPECIAL, *WORDS, *SIGNS))}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", pad_token="<pad>", eos_token="</s>"
    )


def make_questions(count: int, seed: int = 0, fewest: int = 2) -> list[dict[str, Any]]:
    """Questions with two to four choices."""
    stream = random.Random(seed)
    rows = []
    for _ in range(count):
        kind = stream.choice(("hot", "cold"))
        choices = stream.sample(["fire", "ice", "snow", "sun", "stone"], stream.randint(fewest, 4))
        label = stream.randrange(len(choices))
        rows.append({"question": f"which is {kind} ?", "choices": choices, "label": label})
    return rows


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def make_base(folder: Path, auto: str, family: str, **settings: Any) -> Path:
    """A tiny random base with a tokenizer beside it."""
    sizes = {"vocab_size": len(SPECIAL) + len(WORDS) + len(SIGNS), **settings}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base = getattr(transformers, auto).from_config(tiny_config(family, **sizes))
    base.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def foreign_checkpoint(folder: Path, auto: str, family: str, config: Any, **settings: Any) -> Path:
    """An adapter as its own `save_pretrained` writes it, on a base with a tokenizer beside it."""
    base = make_base(folder / "base", auto, family, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tuned = get_peft_model(getattr(transformers, auto).from_pretrained(base), config)
    randomize(tuned).save_pretrained(folder / "adapter")
    return folder / "adapter"
