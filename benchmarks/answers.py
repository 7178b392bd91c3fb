"""A language model that answers with one token: trained weights, a temperature, and ours.

    python benchmarks/answers.py --data DIR --model FOLDER            # what is missing, the page
    python benchmarks/answers.py --data DIR --model FOLDER --sets boolq --seeds 0
    python benchmarks/answers.py --data DIR --model FOLDER --report   # run nothing, write the page

The setting of Laplace-LoRA (https://arxiv.org/abs/2308.13111) on its five small sets. A causal
language model with LoRA is trained on questions with lettered choices, its logits restricted to the
letters, and each method predicts other questions from it. DIR holds one folder a set, FOLDER is the
model. Scores go into the committed `answers.csv`; what is there already is not computed again.
"""

from __future__ import annotations

import argparse
import math
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from calibration_data import CellRows
from calibration_methods import BATCH_SIZE, MAP, METHODS, OURS, TEMPERATURE, outcomes
from calibration_store import Score, complete, load, scored
from calibration_tables import beside_map, cells_table, figures_table, summary_table
from cells import keyed, parser, quiet
from pages import command, markdown
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from posthoc_bhpeft import BayesianPeft, bayesianize
from posthoc_bhpeft.audit import Contest, RivalName
from posthoc_bhpeft.checkpoints import load_tokenizer, write_text
from posthoc_bhpeft.data import TextData, encode_prompts, load_rows, make_loader
from posthoc_bhpeft.data.answers import letters
from posthoc_bhpeft.errors import DataError
from posthoc_bhpeft.tasks import AnswerTokens, TaskModel

PAGE, SCORES = "answers.md", "answers.csv"
# Part of every cell's key: raise it when a cell means something else than before.
PROTOCOL = 1
# Where each set is tested: nobody documents the answers of winogrande_s's test rows.
SPLITS = {
    "arc_easy": "test",
    "arc_challenge": "test",
    "openbookqa": "test",
    "boolq": "test",
    "winogrande_s": "validation",
}
COMPARED = (MAP, TEMPERATURE, OURS)
TRAINING_BATCH, LEARNING_RATE = 8, 2e-3
RANK, TARGETS = 8, ("q_proj", "v_proj", "o_proj")


@dataclass(frozen=True)
class Cell:
    """One trained model.

    Attributes:
        model: name of its base.
        name: of the set.
        seed: of weights, rows drawn and their order.
        rows: to train on.
        extra: further labelled rows, which only temperatures see.
        test_rows: held-out rows, the same for every seed.
        steps: of training.
        max_length: tokens a prompt has at most; a longer one loses its beginning.
    """

    model: str
    name: str
    seed: int
    rows: int
    extra: int
    test_rows: int
    steps: int
    max_length: int

    @property
    def protocol(self) -> str:
        """How long the model was trained."""
        return f"{self.steps} steps"

    @property
    def label(self) -> str:
        """Set, rows and seed: for people."""
        return f"{self.name}-{self.rows}-{self.seed}"

    @property
    def key(self) -> str:
        """The label with a hash of all that decides the result."""
        fixed = [TRAINING_BATCH, LEARNING_RATE, RANK, TARGETS, SPLITS[self.name], PROTOCOL]
        return keyed(self.label, [asdict(self), fixed])


def rows_of(cell: Cell, data: Path) -> CellRows:
    """All rows of a cell; test rows are one draw for all seeds.

    Raises:
        DataError: the set has fewer rows than the cell asks for.
    """
    folder, needed = data / cell.name, cell.rows + cell.extra
    drawn = load_rows(folder, "train", choices=True).draw(needed, cell.seed)
    if len(drawn) < needed:
        raise DataError(f"{cell.name} has {len(drawn)} training rows; {needed} were asked for.")
    return CellRows(
        train=drawn.take(range(cell.rows)),
        validation=None,
        extra=drawn.take(range(cell.rows, needed)),
        test=tested(cell.name, cell.test_rows, data),
        outside=None,
    )


def tested(name: str, rows: int, data: Path) -> TextData:
    """The rows that a set is tested on."""
    return load_rows(data / name, SPLITS[name], choices=True).draw(rows, 0)


@dataclass(frozen=True)
class Subject:
    """A model to be trained, and the rows that methods may use.

    Attributes:
        cell: what it is.
        rows: of the cell.
        folder: of the base model.
    """

    cell: Cell
    rows: CellRows
    folder: Path

    @cached_property
    def tokenizer(self) -> Any:
        """Of the base model."""
        return load_tokenizer(self.folder)

    @cached_property
    def model(self) -> TaskModel:
        """Trained by a bare loop."""
        torch.manual_seed(self.cell.seed)
        base = AutoModelForCausalLM.from_pretrained(self.folder)
        config = LoraConfig(task_type="CAUSAL_LM", r=RANK, target_modules=list(TARGETS))
        task = AnswerTokens.of(self.tokenizer, letters(self.most_choices))
        model = TaskModel(get_peft_model(base, config), task)
        optimizer = torch.optim.AdamW(
            [weight for weight in model.parameters() if weight.requires_grad], lr=LEARNING_RATE
        )
        model.train()
        for batch in self.training_batches():
            labels = batch.pop("labels")
            torch.nn.functional.cross_entropy(model(**batch), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
        return model.eval()

    @property
    def most_choices(self) -> int:
        """Of any row: few have one more than the others, and they may all be test rows."""
        parts = (self.rows.train, self.rows.extra, self.rows.test)
        return max(len(own) for rows in parts for own in rows.choices or ())

    def training_batches(self) -> Any:
        """As many shuffled batches as there are steps."""
        generator = torch.Generator().manual_seed(self.cell.seed)
        loader = make_loader(
            self.encoded(self.rows.train),
            self.tokenizer,
            batch_size=TRAINING_BATCH,
            shuffle=True,
            generator=generator,
        )
        left = self.cell.steps
        while left:
            for batch, _ in zip(loader, range(left), strict=False):
                left -= 1
                yield batch

    @cached_property
    def bayes(self) -> BayesianPeft:
        """Ours, as by default."""
        return bayesianize(self.model, self.loader(self.rows.train), progress=False)

    def encoded(self, rows: TextData) -> Any:
        """Rows as prompts."""
        return encode_prompts(rows, self.tokenizer, max_length=self.cell.max_length)

    def loader(self, rows: TextData) -> Any:
        """Rows in batches, longest prompts first."""
        encoded = self.encoded(rows)
        return make_loader(encoded, self.tokenizer, batch_size=BATCH_SIZE, by_length=True)

    def rival(self, name: RivalName) -> Any:
        """Another method, fitted."""
        held_out = self.loader(self.rows.extra)
        return Contest(self.model, held_out=held_out, progress=False).make(name)


def run(cell: Cell, methods: Sequence[str], options: argparse.Namespace) -> dict[str, Score]:
    """The methods wanted on one cell."""
    subject = Subject(cell, rows_of(cell, options.data), options.model)
    _ = subject.model  # Trained here, so that no method is charged for it.
    found = dict(outcomes(subject, methods))
    if OURS in found:
        print(subject.bayes.explain())
    return scored(cell, found)


def cells(options: argparse.Namespace) -> list[Cell]:
    """The cells asked for: one seed of every set, then the next."""
    return [
        Cell(
            options.model.name,
            name,
            seed,
            options.rows,
            options.extra,
            options.test_rows,
            options.steps,
            options.max_length,
        )
        for seed in options.seeds
        for name in options.sets
    ]


def ordered(scores: Sequence[Score]) -> list[Score]:
    """By set, seed and method, so that the file's changes are small."""
    names, methods = list(SPLITS), list(METHODS)
    return sorted(scores, key=lambda s: (names.index(s.name), s.seed, methods.index(s.method)))


def rows_table(options: argparse.Namespace) -> str:
    """What each set's test rows are, and what one who knows only how often each letter is gets."""
    lines = []
    for name in options.sets:
        rows = tested(name, options.test_rows, options.data)
        counts = Counter(rows.labels or ())
        shares = [count / len(rows) for count in counts.values()]
        encoded = encode_prompts(rows, load_tokenizer(options.model), max_length=10**6)
        cut = sum(length > options.max_length for length in encoded.lengths) / len(rows)
        choices = sorted({len(own) for own in rows.choices or ()})
        lines.append(
            [
                name,
                SPLITS[name],
                str(len(rows)),
                " to ".join(str(one) for one in dict.fromkeys([choices[0], choices[-1]])),
                f"{max(shares):.3f}",
                f"{-sum(share * math.log(share) for share in shares):.3f}",
                f"{cut:.0%}",
            ]
        )
    header = ["set", "split", "rows", "choices", "most frequent letter", "entropy of the letters"]
    return markdown([*header, "prompts cut"], lines)


def differences_table(scores: Sequence[Score]) -> str:
    """NLL of the others less MAP's on the same rows: mean over seeds, and how many are clear."""
    rows = []
    for name in dict.fromkeys(s.name for s in scores):
        for method in (TEMPERATURE, OURS):
            pairs = beside_map([s for s in scores if s.name == name], method)
            less = [mine.less for mine, _ in pairs]
            below, above = sum(s.high < 0 for s, _ in pairs), sum(s.low > 0 for s, _ in pairs)
            rows.append(
                [
                    name,
                    method,
                    f"{sum(less) / len(less):+.4f} ({min(less):+.4f} to {max(less):+.4f})",
                    f"{below}, {len(pairs) - below - above}, {above}",
                ]
            )
    return markdown(["set", "method", "NLL less MAP's", "below, level, above"], rows)


def page(scores: Sequence[Score], options: argparse.Namespace) -> str:
    """The page that is committed."""
    seeds = ", ".join(str(seed) for seed in sorted({s.seed for s in scores}))
    return f"""# Answers of a language model

`{command(DIR=options.data, MODEL=options.model)}`

MODEL is `{options.model.name}`. LoRA of rank {RANK} on {", ".join(TARGETS)}, {options.steps} steps
of {TRAINING_BATCH} on {options.rows} questions with AdamW, learning rate {LEARNING_RATE:g}; prompts
of at most {options.max_length} tokens, longer ones without their beginning. The logits of the next
token are restricted to the letters of the choices. Temperatures see {options.extra} labelled
questions beyond those the model was trained on; no other method does. Ours is `bayesianize` as by
default. Seeds {seeds}: of weights, rows and their order. torch {torch.__version__}, transformers
{transformers.__version__}, {platform.machine()} CPU. Every score is in `{SCORES}`.

What is tested on, the same rows for every seed. *Entropy of the letters* is the NLL, in nats, of
one who does not read the question but knows how often each letter is right.

{rows_table(options)}

Mean ± standard deviation over seeds, in nats:

{figures_table(scores)}

NLL less that of MAP on the same rows: mean (lowest to highest) over seeds. *Below, level, above*:
seeds whose paired 95 % bootstrap interval lies below 0, holds 0, lies above.

{differences_table(scores)}

All sets together:

{summary_table(scores)}

Ours, model by model:

{cells_table(scores)}
"""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    asked = parser(__doc__)
    asked.add_argument("--model", type=Path, required=True, help="folder of a language model")
    asked.add_argument("--sets", nargs="+", default=list(SPLITS), choices=SPLITS)
    asked.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    asked.add_argument("--rows", type=int, default=320, help="to train on")
    asked.add_argument("--extra", type=int, default=200, help="that only temperatures see")
    asked.add_argument("--test-rows", type=int, default=500)
    asked.add_argument("--steps", type=int, default=200, help="of training")
    asked.add_argument("--max-length", type=int, default=256, help="tokens of a prompt")
    return asked.parse_args(arguments)


def main() -> None:
    """Run what is missing, then write the page."""
    options = parse()
    quiet()
    store, wanted = options.results / SCORES, cells(options)
    if not options.report:
        complete(store, wanted, COMPARED, lambda cell, names: run(cell, names, options), ordered)
    keys = {cell.key for cell in wanted}
    scores = ordered([one for one in load(store).values() if one.cell in keys])
    write_text(options.results / PAGE, page(scores, options))
    print(figures_table(scores))


if __name__ == "__main__":
    main()
