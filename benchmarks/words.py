"""A label at every word: trained weights, the visible precision alone, and ours.

    python benchmarks/words.py --data DIR                    # what is missing, then the page
    python benchmarks/words.py --data DIR --sets ag_news --seeds 0
    python benchmarks/words.py --data DIR --report           # run nothing, write the page

MiniLM with a hybrid learns what words of a text were that it sees in small letters: capitalised,
all capitals, a number, punctuation, or none of these. Where labels are noisy, a share of all words,
test words too, has a tag drawn at random, so that learning rows by heart shows. DIR holds one
folder a set. Scores go into the committed `words.csv`; what is there already is not computed again.
"""

from __future__ import annotations

import argparse
import platform
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from cells import complete, keyed, parser, quiet
from pages import command
from words_scores import (
    MAP,
    OURS,
    SETS,
    VISIBLE,
    Score,
    as_csv,
    figures_table,
    load,
    losses,
    mean_of_texts,
    summary_table,
)

from posthoc_bhpeft import Tangent, Tokens, VisiblePrecision, bayesianize
from posthoc_bhpeft.audit import metrics
from posthoc_bhpeft.batches import IGNORED
from posthoc_bhpeft.checkpoints import write_text
from posthoc_bhpeft.data import TextData, encode_words, load_rows, make_loader
from posthoc_bhpeft.predictive import Prediction
from posthoc_bhpeft.selection import LeaveOneOut
from posthoc_bhpeft.training import TrainingResult, TrainingSettings, train

PAGE, SCORES = "words.md", "words.csv"
# Part of every cell's key: raise it when a cell means something else than before.
PROTOCOL = 1
TAGS = ("none", "capitalised", "capitals", "number", "mark")
# Epochs, and the share of words whose tag is drawn at random.
TRAININGS = ((1, 0.0), (4, 0.0), (12, 0.0), (16, 0.2))
BATCH_SIZE = 16
PIECES = re.compile(r"\w+(?:['.-]\w+)*|[^\w\s]")


@dataclass(frozen=True)
class Cell:
    """One trained model.

    Attributes:
        name: of the set.
        epochs: of training.
        noise: share of words whose tag is drawn at random.
        seed: of weights, texts drawn and their order.
        texts: to train on.
        test_texts: the same for every seed.
        words: a text is cut after so many.
        draws: of the predictive.
    """

    name: str
    epochs: int
    noise: float
    seed: int
    texts: int
    test_texts: int
    words: int
    draws: int

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.name}-{self.epochs}-{self.noise:g}-{self.seed}"

    @property
    def key(self) -> str:
        """The label with a hash of all that decides the result."""
        return keyed(self.label, [asdict(self), BATCH_SIZE, PIECES.pattern, PROTOCOL])


def tag(word: str) -> int:
    """What a word is, by how it is written: the place in `TAGS`."""
    if any(map(str.isdigit, word)):
        return 3
    if not any(map(str.isalnum, word)):
        return 4
    if len(word) > 1 and word.isupper():
        return 2
    return int(word[0].isupper())


def tagged(texts: Iterable[str], cell: Cell, seed: int) -> TextData:
    """Texts in small letters, with a tag for each word."""
    stream = random.Random(seed)
    cut = [PIECES.findall(text)[: cell.words] for text in texts]
    tags = tuple(
        tuple(
            stream.randrange(len(TAGS)) if stream.random() < cell.noise else tag(word)
            for word in words
        )
        for words in cut
    )
    small = tuple(tuple(word.lower() for word in words) for words in cut)
    return TextData(
        texts=tuple(map(" ".join, small)),
        words=small,
        labels=tags,
        label_names=TAGS,
        columns={},
        indices=tuple(range(len(small))),
        notes=(),
    )


def rows_of(cell: Cell, data: Path) -> tuple[TextData, TextData]:
    """Texts to train on, and those to test on: one draw for all seeds."""
    folder = data / cell.name
    training = load_rows(folder, "train", ignore_labels=True).draw(cell.texts, cell.seed)
    test = load_rows(folder, "test", ignore_labels=True).draw(cell.test_texts, 0)
    return tagged(training.texts, cell, cell.seed), tagged(test.texts, cell, 1000)


def run(cell: Cell, data: Path) -> list[Score]:
    """Every method on one cell."""
    training, test = rows_of(cell, data)
    settings = TrainingSettings(epochs=cell.epochs, seed=cell.seed, batch_size=BATCH_SIZE)
    tuned = train("minilm", training, settings=settings, progress=False)
    found = []
    for method, rule in ((VISIBLE, VisiblePrecision()), (OURS, LeaveOneOut())):
        seen = batches(tuned, training)
        bayes = bayesianize(tuned.model, seen, likelihood=Tokens(), prior=rule, progress=False)
        temperature = bayes.predictive.temperature
        way = Tangent(cell.draws, temperature=temperature)
        said = bayes.predict_loader(batches(tuned, test), way, progress=False)
        [precision] = set(bayes.posterior.prior.precision.values())
        if not found:
            found.append(score(cell, MAP, said, said.logits.softmax(-1), 0.0, 1.0))
        found.append(score(cell, method, said, said.probabilities, precision, temperature))
    print(bayes.reason, flush=True)
    return found


def batches(tuned: TrainingResult, rows: TextData) -> Any:
    """Words in batches."""
    encoded = encode_words(rows, tuned.tokenizer, max_length=tuned.record.settings.max_length)
    return make_loader(encoded, tuned.tokenizer, batch_size=BATCH_SIZE)


def score(
    cell: Cell,
    method: str,
    said: Prediction,
    probabilities: Any,
    precision: float,
    temperature: float,
) -> Score:
    """One method's figures, from its probabilities `(N, T, C)`."""
    assert said.labels is not None
    counted = said.labels != IGNORED
    told = metrics.summary(probabilities[counted], said.labels[counted])
    mine, plain = (losses(one, said.labels) for one in (probabilities, said.logits.softmax(-1)))
    less, error = mean_of_texts(mine - plain, counted)
    figures = {name: float(getattr(told, name)) for name in ("accuracy", "nll", "ece")}
    known = (cell.key, cell.name, cell.epochs, cell.noise, cell.seed, method, int(counted.sum()))
    return Score(*known, **figures, less=less, error=error, precision=precision,
                 temperature=temperature)  # fmt: skip


def told(found: Sequence[Score]) -> str:
    """Of one cell, for people."""
    return ", ".join(f"{one.method} {one.nll:.4f}" for one in found)


def cells(options: argparse.Namespace) -> list[Cell]:
    """The cells asked for: one seed of everything, then the next."""
    sizes = (options.texts, options.test_texts, options.words, options.draws)
    return [
        Cell(name, epochs, noise, seed, *sizes)
        for seed in options.seeds
        for epochs, noise in TRAININGS
        for name in options.sets
    ]


def page(scores: Sequence[Score], options: argparse.Namespace) -> str:
    """The page that is committed."""
    seeds = ", ".join(map(str, sorted({one.seed for one in scores})))
    return f"""# A label at every word

`{command(DIR=options.data)}`

MiniLM, a hybrid, learns from {options.texts} texts in small letters, cut after {options.words}
words, what each word was: {", ".join(TAGS)}. *Noise* is the share of all words, test words too,
whose tag is drawn at random. {options.test_texts} test texts, the same for every seed;
{options.draws} draws. *Visible precision* is `VisiblePrecision()`, ours `bayesianize` as by
default; accuracy is MAP's by construction. Seeds {seeds}: of weights, texts and their order. torch
{torch.__version__}, transformers {transformers.__version__}, {platform.machine()} CPU. Every score
is in `{SCORES}`.

Mean ± standard deviation over seeds, NLL in nats a word; beside MAP's, the lowest and the highest
over seeds:

{figures_table(scores)}

All models together. *Below, level, above*: models whose NLL differs from MAP's by more than two
standard errors, over texts, because words of a text depend on each other.

{summary_table(scores)}
"""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    asked = parser(__doc__)
    asked.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    asked.add_argument("--seeds", nargs="+", type=int, default=[0])
    asked.add_argument("--texts", type=int, default=160, help="to train on")
    asked.add_argument("--test-texts", type=int, default=100)
    asked.add_argument("--words", type=int, default=24, help="of a text")
    asked.add_argument("--draws", type=int, default=8)
    return asked.parse_args(arguments)


def main() -> None:
    """Run what is missing, then write the page."""
    options = parse()
    quiet()
    store, wanted = options.results / SCORES, cells(options)
    if not options.report:
        complete(store, wanted, lambda cell: run(cell, options.data), load, as_csv, told)
    keys = {cell.key for cell in wanted}
    scores = [one for one in load(store) if one.cell in keys]
    write_text(options.results / PAGE, page(scores, options))
    print(summary_table(scores))


if __name__ == "__main__":
    main()
