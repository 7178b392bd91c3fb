"""Labels at every position: losses, texts told apart, written texts, and a tagger.

    python benchmarks/generation.py --data DIR --model FOLDER
    python benchmarks/generation.py --data DIR --model FOLDER --seeds 0 --results OTHER

DIR holds one folder a set (`ag_news`, `sst2`, `airline_tweets`, `dbpedia14`), FOLDER is a small
language model. A seed draws the training texts, the weights and their order; test texts are the
same for every seed. What a seed gave is kept under `--output` and not computed again.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from cells import quiet
from generation_models import (
    DRAWS,
    EPOCHS,
    KIND_TEXTS,
    KINDS,
    LENGTH,
    NLL_TEXTS,
    PROMPT,
    RANK,
    TAGGER_EPOCHS,
    TAGGER_TESTS,
    TAGGER_TEXTS,
    TARGETS,
    TRAINING_TEXTS,
    WRITTEN,
    WRITTEN_KINDS,
    WRITTEN_TEXTS,
    Shelf,
    apart,
    batches,
    doubts,
    language_model,
    losses,
    step_errors,
    tagger,
    written,
)
from pages import RESULTS, command, markdown, publish, spread

from posthoc_bhpeft.checkpoints import load_tokenizer, read_json, write_json

PAGE = "generation.md"
Seed = dict[str, Any]


def news(folder: Path, shelf: Shelf) -> Seed:
    """The model of AG News: its losses, texts told apart, what it writes, the step of `Tangent`."""
    tokenizer, bayes = load_tokenizer(folder), language_model(folder, "ag_news", shelf)
    told = {kind: doubts(bayes, batches(shelf.kind(kind, KIND_TEXTS), tokenizer)) for kind in KINDS}
    own = {
        kind: written(bayes, shelf.kind(kind, WRITTEN_TEXTS), tokenizer) for kind in WRITTEN_KINDS
    }
    return {
        "losses": losses(bayes, batches(shelf.test("ag_news", NLL_TEXTS), tokenizer)),
        "texts": apart(told),
        "written": apart(own),
        "steps": step_errors(bayes, batches(shelf.test("ag_news", 4), tokenizer)[0]),
    }


def reviews(folder: Path, shelf: Shelf) -> Seed:
    """The losses of the model of SST-2."""
    test = batches(shelf.test("sst2", NLL_TEXTS), load_tokenizer(folder))
    return {"losses": losses(language_model(folder, "sst2", shelf), test)}


PARTS: dict[str, Callable[[Path, Shelf], Seed]] = {
    "ag_news": news,
    "sst2": reviews,
    "tagger": lambda _, shelf: tagger(shelf),
}


def over(seeds: Sequence[Seed], figure: Callable[[Seed], float], digits: int) -> str:
    """Mean and standard deviation over seeds."""
    return spread([figure(seed) for seed in seeds], digits)


def losses_table(seeds: Sequence[Seed]) -> str:
    """NLL of every way to predict, and by how much it is below that of the trained model."""
    ways = list(seeds[0]["ag_news"]["losses"])
    rows = []
    for way in ways:
        cells = []
        for name in EPOCHS:
            digits = 0 if way == "precision chosen" else 4
            cells.append(over(seeds, lambda s, n=name, w=way: s[n]["losses"][w], digits))
            cells.append("" if digits == 0 or way == ways[0] else less(seeds, name, way, ways[0]))
        rows.append([way, *cells])
    heads = [head for name in EPOCHS for head in (f"{name}, {EPOCHS[name]} epochs", "less trained")]
    return markdown(["", *heads], rows)


def less(seeds: Sequence[Seed], name: str, way: str, plain: str) -> str:
    """The lowest and the highest difference over seeds."""
    gaps = [seed[name]["losses"][way] - seed[name]["losses"][plain] for seed in seeds]
    return f"{min(gaps):+.4f} to {max(gaps):+.4f}"


def apart_table(seeds: Sequence[Seed], part: str, digits: int) -> str:
    """Each score of each kind of text, with its AUROC."""
    names = list(seeds[0]["ag_news"][part][WRITTEN_KINDS[0]])
    scores = [name for name in names if not name.endswith(" AUROC")]
    rows = []
    for kind in seeds[0]["ag_news"][part]:
        cells = []
        for score in scores:
            cells.append(over(seeds, lambda s, k=kind, n=score: s["ag_news"][part][k][n], digits))
            cells.append(
                over(seeds, lambda s, k=kind, n=score: s["ag_news"][part][k][f"{n} AUROC"], 2)
            )
        rows.append([kind, *cells])
    return markdown(["texts", *(h for score in scores for h in (score, "AUROC"))], rows)


def tagger_table(seeds: Sequence[Seed]) -> str:
    """The tagger by each way to predict."""
    rows = []
    for way in ("trained", "Tangent()", "Sampled()"):
        figures = ("NLL", "accuracy", "total AUROC", "epistemic AUROC")
        found = [
            over(seeds, lambda s, f=f, w=way: s["tagger"][f"{f}, {w}"], 3 if "A" in f[1:] else 4)
            for f in figures
        ]
        # The trained weights alone have no epistemic part.
        rows.append([way, *found[:3], "–" if way == "trained" else found[3]])
    return markdown(["", "NLL", "accuracy", "entropy, AUROC", "epistemic, AUROC"], rows)


def page(seeds: Sequence[Seed], options: argparse.Namespace) -> str:
    """The page that is committed."""
    numbers = ", ".join(map(str, options.seeds))
    words = seeds[0]["tagger"]["words, trained"]
    float32, bfloat16 = (
        over(seeds, lambda s, n=name: 100 * s["ag_news"]["steps"][n], 2)
        for name in ("float32", "bfloat16")
    )
    return f"""# Tokens and generation

`{command(DIR=options.data, MODEL=options.model)}`

MODEL is `{options.model.name}`. LoRA of rank {RANK} on {", ".join(TARGETS)}, tuned on
{TRAINING_TEXTS} texts of at most {LENGTH} tokens, posterior as by default, {DRAWS} draws. Seeds
{numbers}: of training texts, weights and their order; test texts are the same for all. Mean ±
standard deviation over seeds. torch {torch.__version__}, transformers {transformers.__version__},
{platform.machine()} CPU.

## Losses

NLL in nats a token on {NLL_TEXTS} test texts of the set that the model was tuned on. *Less
trained*: the lowest and the highest difference to the trained model's, over seeds.

{losses_table(seeds)}

## Texts told apart

The model of AG News, {KIND_TEXTS} texts of each kind: mean over the tokens of a text, in nats, and
the AUROC against AG News test texts. *Entropy* is that of the trained model's predictions,
*epistemic* ours, *surprise* the negative log probability of the tokens that are there.

{apart_table(seeds, "texts", 4)}

## Texts that the model wrote

Greedily, {WRITTEN} tokens after the first {PROMPT} of {WRITTEN_TEXTS} texts of each kind, by
`generate_with_uncertainty`. *Entropy* is that of the mean over draws, *spread* the standard
deviation over draws of a text's log probability, a token.

{apart_table(seeds, "written", 4)}

## The step of `Tangent()`

Against the same draws in double precision, root mean square over tokens and draws of what a draw
does to the log-odds: {float32} % wrong in float32, {bfloat16} % with a bfloat16 base.

## A tagger

MiniLM with LoRA of rank {RANK} on query and value learns from {TAGGER_TEXTS} texts of AG News which
of their words were capitalised (not, the first letter, all letters), {TAGGER_EPOCHS} epochs;
{words} words of {TAGGER_TESTS} test texts. Precision chosen by `VisiblePrecision()`:
{over(seeds, lambda s: s["tagger"]["precision chosen"], 0)}. The AUROC is that of wrong tags among
all.

{tagger_table(seeds)}
"""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with one folder a set")
    parser.add_argument("--model", type=Path, required=True, help="folder of a language model")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("outputs/generation"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args(arguments)


def finished(number: int, options: argparse.Namespace) -> Seed:
    """All parts of one seed; what is not there yet is computed and kept."""
    found = {}
    for part, run in PARTS.items():
        kept = options.output / f"{options.model.name}-{part}-{number}.json"
        if not kept.is_file():
            start = time.perf_counter()
            write_json(kept, run(options.model, Shelf(options.data, number)))
            print(f"{part}, seed {number}: {time.perf_counter() - start:.0f} s", flush=True)
        found[part] = read_json(kept)
    return found


def main() -> None:
    """Run what is missing, then write the page."""
    options = parse()
    quiet()
    seeds = [finished(number, options) for number in options.seeds]
    publish(page(seeds, options), options.results / PAGE)


if __name__ == "__main__":
    main()
