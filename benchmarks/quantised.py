"""Bases in 8 and 4 bits: what the frozen weights take, and what that does to a posterior.

    python benchmarks/quantised.py --data DIR                # what is missing, then the page
    python benchmarks/quantised.py --data DIR --sets ag_news --seeds 0
    python benchmarks/quantised.py --data DIR --report       # run nothing, write the page

MiniLM with a hybrid is trained with its base in full, in 8 or in 4 bits (bitsandbytes), and fitted
as it was trained; what was trained in full is fitted on bases in few bits as well, as somebody does
who has no room for more. DIR holds one folder a set. Scores go into the committed `quantised.csv`;
what is there already is not computed again.
"""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cells import complete, keyed, parser, quiet
from pages import markdown, origin, spread
from records import read_records, records_as_csv
from torch import nn

from posthoc_bhpeft import MAP, Prediction, bayesianize, estimate
from posthoc_bhpeft.checkpoints import load_adapter, load_tokenizer, write_text
from posthoc_bhpeft.data import TextData, encode, load_rows, make_loader
from posthoc_bhpeft.quantization import named_quantization
from posthoc_bhpeft.training import TrainingResult, TrainingSettings, train

PAGE, SCORES = "quantised.md", "quantised.csv"
# Part of every cell's key: raise it when a cell means something else than before.
PROTOCOL = 1
BATCH_SIZE = 16
WAYS = (("no", "no"), ("no", "8bit"), ("no", "4bit"), ("8bit", "8bit"), ("4bit", "4bit"))
"""In which the base is kept in training, and afterwards."""
NAMES = {"no": "full", "8bit": "8 bits", "4bit": "4 bits"}


@dataclass(frozen=True)
class Case:
    """A set and how long a network learns it.

    Attributes:
        rows: to train on.
        epochs, max_length: of training.
    """

    rows: int
    epochs: int
    max_length: int


CASES: Mapping[str, Case] = {"ag_news": Case(640, 4, 64), "airline_tweets": Case(640, 4, 40)}


@dataclass(frozen=True)
class Cell:
    """One training, with all that is fitted on it.

    Attributes:
        name: of the set.
        case: how it is learnt.
        trained: in which the base is kept in training.
        seed: of weights, rows drawn and their order.
        test_rows: the same for every seed.
    """

    name: str
    case: Case
    trained: str
    seed: int
    test_rows: int

    @property
    def key(self) -> str:
        """Set, storage and seed with a hash of all that decides the result."""
        identity = [asdict(self), BATCH_SIZE, PROTOCOL]
        return keyed(f"{self.name}-{self.trained}-{self.seed}", identity)


@dataclass(frozen=True)
class Score:
    """One trained model with its base kept in one way, with and without a posterior.

    Attributes:
        cell: key of the cell.
        name, trained, seed: of the cell.
        fitted: in which the base was kept afterwards.
        base_bytes: of the frozen weights.
        accuracy: with a posterior.
        plain: NLL of the trained weights, nats.
        ours: NLL of the posterior.
        error: standard error over rows of the difference between the two.
    """

    cell: str
    name: str
    trained: str
    seed: int
    fitted: str
    base_bytes: int
    accuracy: float
    plain: float
    ours: float
    error: float


def run(cell: Cell, data: Path) -> list[Score]:
    """Train one model, then fit and score it with its base in each of the ways there are."""
    training = load_rows(data / cell.name, split="train").draw(cell.case.rows, cell.seed)
    test = load_rows(data / cell.name, split="test").draw(cell.test_rows, 1000)
    settings = TrainingSettings(
        epochs=cell.case.epochs,
        max_length=cell.case.max_length,
        batch_size=BATCH_SIZE,
        seed=cell.seed,
        quantize=cell.trained,
    )
    tuned = train("minilm", training, settings=settings, progress=False)
    return [
        score(cell, fitted, tuned, training, test) for own, fitted in WAYS if own == cell.trained
    ]


def score(
    cell: Cell, fitted: str, tuned: TrainingResult, training: TextData, test: TextData
) -> Score:
    """Load the trained model anew with its base kept so, fit it, and predict."""
    with TemporaryDirectory() as folder:
        tuned.save(Path(folder) / "out")
        kept = None if fitted == "no" else named_quantization(fitted, dtype="float32")
        model = load_adapter(Path(folder) / "out", quantization=kept)
        tokenizer = load_tokenizer(Path(folder) / "out")

    def batches(rows: TextData) -> Any:
        encoded = encode(rows, tokenizer, max_length=cell.case.max_length)
        return make_loader(encoded, tokenizer, batch_size=BATCH_SIZE)

    bayes = bayesianize(model, batches(training), progress=False)
    print(bayes.reason, flush=True)
    plain = bayes.predict_loader(batches(test), MAP(), progress=False)
    said = bayes.predict_loader(batches(test), progress=False)
    apart = losses(said) - losses(plain)
    return Score(
        cell.key,
        cell.name,
        cell.trained,
        cell.seed,
        fitted,
        base_bytes=frozen_bytes(model, batches(training)),
        accuracy=float((said.probabilities.argmax(-1) == said.labels).double().mean()),
        plain=float(losses(plain).mean()),
        ours=float(losses(said).mean()),
        error=float(apart.std() / math.sqrt(len(apart))),
    )


def losses(prediction: Prediction) -> Any:
    """NLL of each row."""
    assert prediction.labels is not None
    chosen = prediction.probabilities.double().gather(1, prediction.labels.long()[:, None])
    return -chosen.clamp_min(1e-12).log().squeeze(1)


def frozen_bytes(model: nn.Module, loader: Any) -> int:
    """Of the model less what is trained, with the scales of quantised weights."""
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return estimate(model, loader).work.model_bytes - trained


def load(path: Path) -> list[Score]:
    """All scores of a file."""
    return read_records(Score, path)


def as_csv(scores: Iterable[Score]) -> str:
    """By set, way and seed, so that the file's changes are small."""
    sets = list(CASES)
    ordered = sorted(
        scores,
        key=lambda one: (sets.index(one.name), WAYS.index((one.trained, one.fitted)), one.seed),
    )
    return records_as_csv(Score, ordered, digits=6)


def told(found: Sequence[Score]) -> str:
    """Of one cell, for people."""
    return ", ".join(f"{one.fitted}: MAP {one.plain:.4f}, ours {one.ours:.4f}" for one in found)


def table(scores: Sequence[Score]) -> str:
    """A row a set and way: mean ± standard deviation over seeds."""
    lines = []
    for name in CASES:
        for trained, fitted in WAYS:
            own = [s for s in scores if (s.name, s.trained, s.fitted) == (name, trained, fitted)]
            if not own:
                continue
            values = [spread([getattr(s, field) for s in own], 3) for field in ("plain", "ours")]
            apart = "; ".join(f"{s.ours - s.plain:+.3f} ({s.error:.3f})" for s in own)
            accuracy = spread([s.accuracy for s in own], 3)
            size = f"{own[0].base_bytes / 2**20:.1f}"
            lines.append([name, NAMES[trained], NAMES[fitted], size, accuracy, *values, apart])
    header = ["set", "trained in", "fitted in", "base, MiB", "accuracy", "trained weights", "ours"]
    return markdown([*header, "ours less trained weights"], lines)


def page(scores: Sequence[Score], options: argparse.Namespace) -> str:
    """The page that is committed."""
    seeds = ", ".join(map(str, sorted({one.seed for one in scores})))
    packages = ("torch", "transformers", "peft", "bitsandbytes")
    return f"""# Bases in 8 and 4 bits

{origin(*packages, DIR=options.data)}; CPU

MiniLM and a hybrid, its base kept in full (float32), by LLM.int8() or in 4-bit NormalFloat, and
{options.test_rows} test rows, the same for every seed. Seeds {seeds}: of weights, rows and their
order. *Base* is what the frozen weights take with their scales; MiniLM's embedding, half of its
weights, is not quantised. NLL in nats a row; ours is `bayesianize` as by default, without a
held-out row; the difference is on the same rows, in brackets its standard error, a seed each.
Mean ± standard deviation over seeds. Every score is in `{SCORES}`.

{table(scores)}
"""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    asked = parser(__doc__)
    asked.add_argument("--sets", nargs="+", default=list(CASES), choices=list(CASES))
    asked.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    asked.add_argument("--test-rows", type=int, default=400)
    return asked.parse_args(arguments)


def main() -> None:
    """Run what is missing, then write the page."""
    options = parse()
    quiet()
    # A line for every product of 8 bits.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    store = options.results / SCORES
    wanted = [
        Cell(name, CASES[name], trained, seed, options.test_rows)
        for seed in options.seeds
        for name in options.sets
        for trained in NAMES
    ]
    if not options.report:
        complete(store, wanted, lambda cell: run(cell, options.data), load, as_csv, told)
    scores = [one for one in load(store) if one.cell in {cell.key for cell in wanted}]
    write_text(options.results / PAGE, page(scores, options))
    print(table(scores))


if __name__ == "__main__":
    main()
