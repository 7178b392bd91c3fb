"""Calibration of ordinarily trained checkpoints, by every way of predicting from one.

    python benchmarks/calibration.py --data DIR              # every cell that is missing, the page
    python benchmarks/calibration.py --data DIR --sets sst2 --rows 320 --methods MAP ours
    python benchmarks/calibration.py --data DIR --report     # run nothing, write the page

A cell is a set, a number of training rows, a seed, and how long the model was trained. A hybrid
MiniLM is trained as `bhpeft train` does, each method predicts held-out rows from it, and the scores
go into the committed `calibration.csv`; what is there already is not computed again. DIR holds one
folder a set with `train` and `test` files. Checkpoints and predictions are kept under `--output`.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from calibration_data import EPOCHS, EXTRA_ROWS, SETS, VALIDATION_ROWS, Cell, rows_of, trained
from calibration_methods import METHODS, QUICK, Subject, outcomes
from calibration_store import Score, complete, keep, load, scored
from calibration_tables import (
    cells_table,
    ensemble_table,
    figures_table,
    outside_table,
    sets_table,
    summary_table,
)
from cells import parser, quiet
from pages import RESULTS, command, fill_readme

from posthoc_bhpeft.checkpoints import write_text

PAGE, SCORES = "calibration.md", "calibration.csv"
TEST_ROWS, MAX_LENGTH = 800, 48


def run(cell: Cell, methods: Sequence[str], options: argparse.Namespace) -> dict[str, Score]:
    """The methods wanted on one cell."""
    rows = rows_of(cell, options.data)
    folder = trained(cell, rows, options.output)
    subject = Subject(cell, rows, folder, options.output)
    found = dict(outcomes(subject, methods))
    keep(options.output / "predictions", cell, found)
    return scored(cell, found)


def cells(options: argparse.Namespace) -> list[Cell]:
    """The cells asked for: one seed of everything, then the next."""
    return [
        Cell(name, rows, seed, protocol, options.test_rows, options.max_length)
        for seed in options.seeds
        for protocol in options.protocols
        for rows in options.rows
        for name in options.sets
    ]


def ordered(scores: Sequence[Score]) -> list[Score]:
    """By set, rows, protocol, seed and method, so that the file's changes are small."""
    names, methods, protocols = list(SETS), list(METHODS), list(EPOCHS)
    return sorted(
        scores,
        key=lambda s: (
            names.index(s.name),
            s.rows,
            protocols.index(s.protocol),
            s.seed,
            methods.index(s.method),
        ),
    )


def page(scores: Sequence[Score], options: argparse.Namespace) -> str:
    """The page that is committed."""
    sizes = ", ".join(str(n) for n in sorted({s.n for s in scores}))
    return f"""# Calibration

`{command(DIR=options.data)}`

Hybrid MiniLM (LoRA, adapter, prefix), texts cut at {options.max_length} tokens, mixed precision
bf16, everything else as `bhpeft train` has it; {sizes} test rows, the same for every seed. *full*
is {EPOCHS["full"]} epochs, *early* the best of them on {VALIDATION_ROWS} validation rows, *under*
{EPOCHS["under"]} epochs, *over* {EPOCHS["over"]}. Temperatures see {EXTRA_ROWS} labelled rows
beyond those the model was trained on; no other method does. torch {torch.__version__},
transformers {transformers.__version__}, {platform.machine()} CPU. Every score is in `{SCORES}`.

NLL over MAP's is a geometric mean over cells, with a bootstrap interval over cells. *Below, level,
above*: cells whose paired 95 % interval of the difference to MAP lies below 0, holds 0, lies above.

{summary_table(scores)}

NLL over MAP's, by set:

{sets_table(scores)}

Rows of no known class (CLINC150), AUROC of each doubt:

{outside_table(scores)}

Against an ensemble of models trained apart:

{ensemble_table(scores)}

Ours, cell by cell:

{cells_table(scores)}

All figures, mean ± standard deviation over seeds:

{figures_table(scores)}
"""


def readme_tables(scores: Sequence[Score]) -> str:
    """What the README shows of the page."""
    return f"{summary_table(scores)}\n\nNLL over MAP's, by set:\n\n{sets_table(scores)}"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    asked = parser(__doc__)
    asked.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    asked.add_argument("--rows", nargs="+", type=int, default=[320, 640, 2000])
    asked.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    asked.add_argument("--protocols", nargs="+", default=["full"], choices=EPOCHS)
    asked.add_argument("--methods", nargs="+", default=list(QUICK), choices=METHODS)
    asked.add_argument("--test-rows", type=int, default=TEST_ROWS)
    asked.add_argument("--max-length", type=int, default=MAX_LENGTH)
    asked.add_argument("--output", type=Path, default=Path("outputs/calibration"))
    return asked.parse_args(arguments)


def main() -> None:
    """Run what is missing, then write the page."""
    options = parse()
    quiet()
    store, methods = options.results / SCORES, options.methods
    if not options.report:
        found = cells(options)
        complete(store, found, methods, lambda cell, names: run(cell, names, options), ordered)
    scores = ordered(list(load(store).values()))
    write_text(options.results / PAGE, page(scores, options))
    if options.results == RESULTS:
        fill_readme("calibration", readme_tables(scores))
    print(summary_table(scores))


if __name__ == "__main__":
    main()
