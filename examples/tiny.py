"""The base model of the examples: MiniLM, or a random one with which they run in seconds."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import torch
from rows import TEXTS, UNSEEN
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

from posthoc_bhpeft.checkpoints import resolve_model


def base_from_command_line(description: str, work: Path) -> str:
    """Folder or hub name of the base model that the options `--tiny` and `--model` choose."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a random model instead of MiniLM")
    parser.add_argument("--model", default="minilm", help="'minilm', a folder, or a hub name")
    arguments = parser.parse_args()
    if arguments.tiny:
        return tiny_base(work / "base", [*TEXTS, *UNSEEN])
    return resolve_model(arguments.model)


def tiny_base(folder: Path, texts: Iterable[str]) -> str:
    """Write a random BERT and a tokenizer that knows the words of the texts; the folder."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = sorted({word for text in texts for word in text.lower().replace(".", " . ").split()})
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate([*special, *words])})
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(special) + len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
