"""Words with a label for each, a base that cuts them into pieces, and rows it can learn at once."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from tests import texts

STEMS = ("the", "meal", "train", "was", "fine", "kind", "late", "rude")
LABELS = {"fine": "good", "kind": "good", "late": "bad", "rude": "bad"}
VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", *STEMS, "##s", "##ly")


def make_base(folder: Path) -> Path:
    """A BERT of two layers without a head, whose tokenizer cuts "meals" into two pieces."""
    return texts.make_base(folder, VOCABULARY, "BertModel")


def make_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows whose words tell their labels themselves, one in three of two pieces."""
    stream = random.Random(seed)
    rows = []
    for _ in range(count):
        stems = [stream.choice(STEMS) for _ in range(stream.randint(2, 8))]
        words = [stem + stream.choice(("", "", "s")) for stem in stems]
        tags = [LABELS.get(stem, "none") for stem in stems]
        rows.append({"tokens": words, "ner_tags": tags, "shop": stream.choice("ab")})
    return rows
