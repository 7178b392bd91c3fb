"""A learner of a few thousand weights, and rounds it can tell apart by single words."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from posthoc_bhpeft.data import TextData
from posthoc_bhpeft.streams import Heads, Learner, Round
from posthoc_bhpeft.training import TrainingSettings
from tests.texts import BAD, GOOD, PLAIN, make_base

QUICK = TrainingSettings(
    epochs=2,
    rank=2,
    bottleneck_size=4,
    num_virtual_tokens=2,
    max_length=24,
    batch_size=8,
    learning_rate=5e-3,
)


@cache
def _folder() -> TemporaryDirectory[str]:
    return TemporaryDirectory(prefix="bases-")


@cache
def base() -> str:
    """A tiny BERT with its tokenizer, made once in a process."""
    return str(make_base(Path(_folder().name)))


def texts(count: int, seed: int = 0, names: tuple[str, ...] = ("bad", "good")) -> TextData:
    """Rows of different lengths whose label is told by one word of theirs."""
    stream = random.Random(seed)
    words = dict(enumerate((BAD, GOOD, PLAIN[:2])))
    rows, labels = [], []
    for number in range(count):
        labels.append(number % len(names))
        sentence = [stream.choice(PLAIN[2:]) for _ in range(stream.randint(2, 12))]
        sentence.insert(0, stream.choice(words[labels[-1]]))
        rows.append(" ".join(sentence))
    return TextData(tuple(rows), labels=tuple(labels), label_names=names)


def round_of(name: str, count: int = 16, seed: int = 0, names=("bad", "good"), **parts) -> Round:
    """A round with as many test rows as training rows."""
    return Round(name, texts(count, seed, names), texts(count, seed + 100, names), **parts)


def learner(heads: Heads = Heads.SHARED, settings: TrainingSettings = QUICK, **options) -> Learner:
    """A learner that has met nothing."""
    return Learner.start(base(), settings, heads, device="cpu", **options)


def met(*rounds: Round, **options) -> Learner:
    """A learner that has met these rounds."""
    started = learner(**options)
    for round_ in rounds:
        started.meet(round_)
    return started


def assert_same_weights(one: Learner, other: Learner) -> None:
    """Equal to the last bit."""
    mine, theirs = one.snapshot(), other.snapshot()
    assert list(mine) == list(theirs)
    assert not [name for name in mine if not torch.equal(mine[name], theirs[name])]
