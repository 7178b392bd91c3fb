"""Several labels a row: a guess by frequency, trained weights, and ours.

    python benchmarks/several.py --data DIR                  # what is missing, then the page
    python benchmarks/several.py --data DIR --cases clinc150 --seeds 0
    python benchmarks/several.py --data DIR --report         # run nothing, write the page

MiniLM with a hybrid learns which of some labels apply to a row, any number of them: the topics of
one or two articles (AG News), the mood of a tweet and the reason of a complaint (airline tweets),
the domains of one to three questions (CLINC150). DIR holds one folder a set. Scores go into the
committed `several.csv`; what is there already is not computed again.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from cells import complete, keyed, parser, quiet
from pages import markdown, origin, spread
from records import read_records, records_as_csv
from torch import Tensor

from posthoc_bhpeft import MAP, Bernoulli, Tempered, bayesianize
from posthoc_bhpeft.checkpoints import write_text
from posthoc_bhpeft.data import TextData, encode, make_loader
from posthoc_bhpeft.training import TrainingSettings, train

PAGE, SCORES = "several.md", "several.csv"
# Part of every cell's key: raise it when a cell means something else than before.
PROTOCOL = 1
BATCH_SIZE = 16
Row = tuple[str, frozenset[str]]
"""A text, and the names of the labels that apply."""


@dataclass(frozen=True)
class Case:
    """A set and how long a network learns it.

    Attributes:
        source: folder of the set.
        rows: to train on.
        epochs, learning_rate, max_length: of training.
    """

    source: str
    rows: int
    epochs: int
    learning_rate: float = 1e-3
    max_length: int = 40


CASES: Mapping[str, Case] = {
    "ag_news": Case("ag_news", 320, 4, max_length=64),
    "ag_news, by heart": Case("ag_news", 160, 16, 4e-3, 64),
    "airline_tweets": Case("airline_tweets", 320, 6),
    "clinc150, too briefly": Case("clinc150", 200, 10, 3e-3),
    "clinc150": Case("clinc150", 640, 20, 3e-3),
}


@dataclass(frozen=True)
class Cell:
    """One trained model.

    Attributes:
        name: of the case.
        case: what that is.
        seed: of weights, rows drawn and their order.
        test_rows: the same for every seed.
    """

    name: str
    case: Case
    seed: int
    test_rows: int

    @property
    def key(self) -> str:
        """The name and seed with a hash of all that decides the result."""
        identity = [asdict(self), BATCH_SIZE, PROTOCOL]
        return keyed(f"{self.name.replace(', ', '-').replace(' ', '-')}-{self.seed}", identity)


@dataclass(frozen=True)
class Score:
    """One model, with and without a posterior.

    Attributes:
        cell: key of the cell.
        name, seed: of the cell.
        labels: that may apply.
        f1: of all answers that are or should be yes; the same with a posterior.
        guess: NLL of what knows how often each label applies to the test rows; nats a row, as all.
        trained: NLL of the trained weights.
        ours: NLL of the posterior, by default.
        error: standard error over rows of the difference between the last two.
        trained_ece, ours_ece: calibration error of all answers' probabilities, in 15 bins.
        precision: of the prior.
        temperature: of the predictions.
    """

    cell: str
    name: str
    seed: int
    labels: int
    f1: float
    guess: float
    trained: float
    ours: float
    error: float
    trained_ece: float
    ours_ece: float
    precision: float
    temperature: float


def read(folder: Path, split: str) -> list[dict[str, Any]]:
    """All rows of a split."""
    with gzip.open(folder / f"{split}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def names_of(folder: Path) -> list[str]:
    """Names of the set's own classes."""
    known = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    return [str(name) for name in known["label_names"]]


def articles(folder: Path, split: str, count: int, stream: random.Random) -> list[Row]:
    """The first 25 words of one or two articles, and their topics."""
    rows, names = read(folder, split), names_of(folder)
    drawn = (stream.sample(rows, stream.choice([1, 2, 2])) for _ in range(count))
    return [
        (
            " ".join(" ".join(one["text"].split()[:25]) for one in some),
            frozenset(names[one["label"]] for one in some),
        )
        for some in drawn
    ]


def tweets(folder: Path, split: str, count: int, stream: random.Random) -> list[Row]:
    """A tweet: negative or positive, and the reason of a complaint; neutral ones have no label."""
    names = names_of(folder)

    def labels(one: dict[str, Any]) -> frozenset[str]:
        mood = [] if names[one["label"]] == "neutral" else [names[one["label"]]]
        return frozenset([*mood, *([one["reason"]] if one.get("reason") else [])])

    return [(one["text"], labels(one)) for one in stream.sample(read(folder, split), count)]


def questions(folder: Path, split: str, count: int, stream: random.Random) -> list[Row]:
    """One to three questions, and their domains."""
    rows = [one for one in read(folder, split) if one.get("domain")]
    drawn = (stream.sample(rows, stream.choice([1, 2, 3])) for _ in range(count))
    return [
        (". ".join(one["text"] for one in some), frozenset(one["domain"] for one in some))
        for some in drawn
    ]


MAKERS: Mapping[str, Callable[[Path, str, int, random.Random], list[Row]]] = {
    "ag_news": articles,
    "airline_tweets": tweets,
    "clinc150": questions,
}


def rows_of(cell: Cell, data: Path) -> tuple[TextData, TextData]:
    """Rows to train on, and those to test on: one draw for all seeds.

    Labels are those that training rows have; others of test rows count as none.
    """
    make, folder = MAKERS[cell.case.source], data / cell.case.source
    training = make(folder, "train", cell.case.rows, random.Random(cell.seed))
    test = make(folder, "test", cell.test_rows, random.Random(1000))
    names = sorted(frozenset[str]().union(*(labels for _, labels in training)))
    return as_data(training, names), as_data(test, names)


def as_data(rows: Sequence[Row], names: Sequence[str]) -> TextData:
    """The same rows, a 0 or 1 for each name."""
    return TextData(
        texts=tuple(text for text, _ in rows),
        labels=tuple(tuple(int(name in own) for name in names) for _, own in rows),
        label_names=tuple(names),
        columns={},
        indices=tuple(range(len(rows))),
        notes=(),
    )


def run(cell: Cell, data: Path) -> Score:
    """Train, fit and score one model."""
    training, test = rows_of(cell, data)
    case = cell.case
    settings = TrainingSettings(
        epochs=case.epochs,
        learning_rate=case.learning_rate,
        max_length=case.max_length,
        batch_size=BATCH_SIZE,
        seed=cell.seed,
    )
    tuned = train("minilm", training, settings=settings, progress=False)

    def batches(rows: TextData) -> Any:
        encoded = encode(rows, tuned.tokenizer, max_length=case.max_length)
        return make_loader(encoded, tuned.tokenizer, batch_size=BATCH_SIZE)

    seen = batches(training)
    bayes = bayesianize(tuned.model, seen, likelihood=Bernoulli(), progress=False)
    print(bayes.reason, flush=True)
    plain = bayes.predict_loader(batches(test), MAP(), progress=False)
    said = bayes.predict_loader(batches(test), progress=False)
    assert said.labels is not None
    truth = said.labels.double()
    before, after = (one.probabilities.double() for one in (plain, said))
    losses = [loss(one, truth) for one in (before, after)]
    link = getattr(bayes.predictive, "link", None)
    return Score(
        cell.key,
        cell.name,
        cell.seed,
        truth.shape[1],
        f1=f1(after, truth),
        guess=float(loss(truth.mean(0).expand_as(truth), truth).mean()),
        trained=float(losses[0].mean()),
        ours=float(losses[1].mean()),
        error=float((losses[1] - losses[0]).std() / math.sqrt(len(truth))),
        trained_ece=calibration_error(before, truth),
        ours_ece=calibration_error(after, truth),
        precision=next(iter(bayes.posterior.prior.precision.values())),
        temperature=link.temperature if isinstance(link, Tempered) else 1.0,
    )


def loss(probabilities: Tensor, truth: Tensor) -> Tensor:
    """NLL of each row, summed over its answers, in nats."""
    safe = probabilities.clamp(1e-12, 1 - 1e-12)
    return -(torch.xlogy(truth, safe) + torch.xlogy(1 - truth, 1 - safe)).sum(1)


def f1(probabilities: Tensor, truth: Tensor) -> float:
    """Of all answers that are or should be yes; 0 where there is none."""
    yes = probabilities > 0.5
    right, either = (yes * truth).sum(), yes.sum() + truth.sum()
    return float(2 * right / either) if either else 0.0


def calibration_error(probabilities: Tensor, truth: Tensor, bins: int = 15) -> float:
    """`sum_b n_b / n |mean p - mean y|` over equally wide bins of all answers' probabilities."""
    p, y = probabilities.flatten(), truth.flatten()
    own = (p * bins).long().clamp_max(bins - 1)
    gap = torch.zeros(bins, dtype=p.dtype).index_add_(0, own, p - y)
    return float(gap.abs().sum() / len(p))


def load(path: Path) -> list[Score]:
    """All scores of a file."""
    return read_records(Score, path)


def as_csv(scores: Iterable[Score]) -> str:
    """By case and seed, so that the file's changes are small."""
    names = list(CASES)
    ordered = sorted(scores, key=lambda one: (names.index(one.name), one.seed))
    return records_as_csv(Score, ordered, digits=6)


def told(found: Sequence[Score]) -> str:
    """Of one cell, for people."""
    return ", ".join(f"MAP {one.trained:.4f}, ours {one.ours:.4f}" for one in found)


def table(scores: Sequence[Score]) -> str:
    """A row a case: mean ± standard deviation over seeds."""
    lines = []
    for name, case in CASES.items():
        if not (own := [one for one in scores if one.name == name]):
            continue
        rate = f"{case.rows} rows, {case.epochs} epochs, rate {case.learning_rate:g}"
        fields = (("f1", 2), ("guess", 3), ("trained", 3), ("ours", 3))
        values = [spread([getattr(one, field) for one in own], digits) for field, digits in fields]
        apart = "; ".join(f"{one.ours - one.trained:+.3f} ({one.error:.3f})" for one in own)
        errors = [
            spread([one.trained_ece for one in own], 3),
            spread([one.ours_ece for one in own], 3),
        ]
        warm = ", ".join(f"{one.temperature:.2f}" for one in own)
        labels = ", ".join(dict.fromkeys(str(one.labels) for one in own))
        lines.append([name, labels, rate, *values, apart, *errors, warm])
    header = ["set", "labels", "training", "F1", "a guess", "trained weights", "ours"]
    return markdown(
        [*header, "ours less trained weights", "ECE, trained", "ECE, ours", "temperatures"], lines
    )


def page(scores: Sequence[Score], options: argparse.Namespace) -> str:
    """The page that is committed."""
    seeds = ", ".join(map(str, sorted({one.seed for one in scores})))
    return f"""# Several labels a row

{origin("torch", "transformers", "peft", DIR=options.data)}; CPU

MiniLM, a hybrid, and {options.test_rows} test rows, the same for every seed. Seeds {seeds}: of
weights, rows and their order. NLL in nats a row, summed over its labels; *a guess* knows how often
each label applies to the test rows. Ours is `bayesianize` as by default, without a held-out row;
the difference is on the same rows, in brackets its standard error, a seed each. Mean ± standard
deviation over seeds. Every score is in `{SCORES}`.

{table(scores)}
"""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    asked = parser(__doc__)
    asked.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    asked.add_argument("--seeds", nargs="+", type=int, default=[0])
    asked.add_argument("--test-rows", type=int, default=400)
    return asked.parse_args(arguments)


def main() -> None:
    """Run what is missing, then write the page."""
    options = parse()
    quiet()
    store = options.results / SCORES
    wanted = [
        Cell(name, CASES[name], seed, options.test_rows)
        for seed in options.seeds
        for name in options.cases
    ]
    if not options.report:
        complete(store, wanted, lambda cell: [run(cell, options.data)], load, as_csv, told)
    scores = [one for one in load(store) if one.cell in {cell.key for cell in wanted}]
    write_text(options.results / PAGE, page(scores, options))
    print(table(scores))


if __name__ == "__main__":
    main()
