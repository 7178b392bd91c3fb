"""The committed page of the stream benchmark, put together from finished cells."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import transformers
from pages import markdown
from stream_methods import METHODS, OURS, TUNING_ROUNDS, TUNING_SEED, TUNING_STREAMS
from stream_tables import (
    Result,
    cost_table,
    curve_table,
    main_table,
    names,
    order_table,
    paired_table,
    pick,
    summary_table,
)

if TYPE_CHECKING:
    from streams import Cell, Setup

# From here on the issue holds the stream of growing rounds against joint training.
LATE = "rows-320"
STORIES = {
    "growth": "SST-2 in rounds of {growth} new rows, one test set, shared labels.",
    "domains": "Positive or negative: SST-2, airline tweets, Amazon, Yelp; neutral rows and three "
    "stars dropped; {domains} training rows a round, shared labels.",
    "tasks": "AG News (4 classes), Amazon and Yelp (5 stars), DBpedia (14), each with outputs of "
    "its own and the task of a test row known; {tasks} training rows a round. Seed s has order "
    "s mod 3.",
    "time": "Sentences of the Federal Reserve, dovish, hawkish or neutral, 1996 to 2022 in four "
    "eras of equally many rows; a quarter of each is its test set, at most {time} rows train.",
}


def tuning_table(accuracies: Mapping[Cell, float]) -> str:
    """Mean over the tuning streams of the average accuracy, for every strength tried."""
    rows = []
    for method in names(cell.method for cell in accuracies):
        mine = {c: accuracy for c, accuracy in accuracies.items() if c.method == method}
        means = {}
        for strength in METHODS[method].grid:
            found = [accuracy for cell, accuracy in mine.items() if cell.strength == strength]
            if len(found) == len({cell.stream for cell in mine}):
                means[strength] = statistics.mean(found)
        if means:
            tried = ", ".join(f"{s:g}: {100 * a:.1f}" for s, a in means.items())
            best = max(means, key=means.__getitem__)
            rows.append([method, tried, f"{best:g}", f"{METHODS[method].chosen:g}"])
    return markdown(["method", "strength: accuracy, %", "best", "chosen"], rows)


def section(results: Sequence[Result], setup: Setup) -> str:
    """One stream."""
    stream = results[0].stream
    rows = {**vars(setup.sizes), "growth": ", ".join(map(str, setup.sizes.growth))}
    parts = [f"## {stream}", STORIES[stream].format(**rows), main_table(results)]
    parts += ["Average accuracy (%) over the rounds so far, after each round:"]
    parts += [curve_table(results)]
    if stream == "tasks":
        parts += ["Average accuracy (%) after the last round, by order:", order_table(results)]
    if LATE in results[0].rounds:
        parts += [f"Against joint training from round {LATE} on:", cost_table(results, LATE)]
    if pick(results, method=OURS):
        parts += [
            "Paired differences, a pair for each seed and tested round; 95 % bootstrap interval "
            "over pairs, taken as independent:",
            paired_table(results, OURS),
        ]
    return "\n\n".join(parts)


def page(results: Sequence[Result], tuned: str, command: str, setup: Setup) -> str:
    """The whole page."""
    seeds = ", ".join(str(seed) for seed in sorted({r.seed for r in results}))
    settings, sizes = setup.settings, setup.sizes
    sections = "\n\n".join(
        section(pick(results, stream=stream), setup) for stream in names(r.stream for r in results)
    )
    return f"""# Streams

`{command}`

Data in rounds; each method learns a round and is then scored on the test rows of every round so
far. MiniLM with LoRA, adapter and prefix (O-LoRA and its own warm start: LoRA alone), texts cut at
{settings.max_length} tokens, {settings.epochs} epochs a round, batches of {settings.batch_size},
learning rate {settings.learning_rate:g}, no weight decay, mixed precision
{settings.mixed_precision}; at most {sizes.test} test rows a round, the same for every seed; seeds
{seeds} (rows drawn, weights, order). torch {torch.__version__}, transformers
{transformers.__version__}, {platform.machine()} CPU, one thread.

Columns: *accuracy*, *NLL* (nats) and *ECE* are means over the rounds so far, after the last round,
mean ± standard deviation over seeds. *Backward*: accuracy on the earlier rounds now less just after
each was learnt, in points. *Forward*: accuracy on a round just before it is learnt, above guessing,
in points, where its labels are known by then. *Seconds*: process time of learning, all rounds but
the first, which is the same training for most methods and is done once and kept; over the seeds
that it was noted for. *State*: bytes
carried to the next round beside one copy of the trained weights, in units of that copy; from the
second to the last round where it grows. *Gap closed*: 0 % is warm start, 100 % joint; left out
where joint is less than a point above warm start. Every score is in `streams.csv`.

{summary_table(results)}

{sections}

## Tuning

Every strength was chosen the same way: three values, once, on the first {TUNING_ROUNDS} rounds of
{" and ".join(TUNING_STREAMS)} with seed {TUNING_SEED}, by the mean of the
average accuracies after the last of them; one value for all streams. Methods without a strength
are not in the table.

{tuned}
"""
