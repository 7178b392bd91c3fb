"""Texts to which any of two labels apply, told by words of theirs, and a base that can learn it."""

from __future__ import annotations

import random
from typing import Any

from tests.texts import BAD, GOOD, PLAIN

NAMES = ("bad", "good")


def make_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows with a list of no, one or two names in `labels`."""
    stream = random.Random(seed)
    rows = []
    for _ in range(count):
        told = {name: stream.random() < 0.5 for name in NAMES}
        words = [stream.choice(PLAIN) for _ in range(stream.randint(2, 6))]
        for name, choices in zip(NAMES, (BAD, GOOD), strict=True):
            if told[name]:
                words.insert(stream.randint(0, len(words)), stream.choice(choices))
        labels = [name for name in NAMES if told[name]]
        rows.append({"text": " ".join(words), "labels": labels})
    return rows
