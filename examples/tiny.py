"""A random base model of a few thousand weights, with which the examples run in seconds."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer


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
