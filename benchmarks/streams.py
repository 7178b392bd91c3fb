"""Learning from data that arrives in rounds: ours beside every baseline, on four streams.

    python benchmarks/streams.py --data DIR --tune       # the strengths in stream_methods.py
    python benchmarks/streams.py --data DIR --workers 2  # every cell that is missing, then the page
    python benchmarks/streams.py --data DIR --report --figures

where DIR holds one folder a set (`sst2`, `airline_tweets`, `amazon_full`, `yelp_full`, `ag_news`,
`dbpedia14`, `fomc_stream`) with `train` and `test` files. A cell is a stream, a seed and a method.
It is written to `--output` under a hash of its rows, settings and method, and used again; so are
those in the committed `streams.csv`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import sys
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from cells import as_data, keyed, quiet
from first_fit import FirstFit
from pages import RESULTS, command, fill_readme
from stream_data import STREAMS, Sizes, Stream
from stream_figures import picture
from stream_methods import METHODS, OURS, TUNING_ROUNDS, TUNING_SEED, TUNING_STREAMS
from stream_page import page, tuning_table
from stream_store import as_csv, from_csv, tuning_as_csv, tuning_from_csv
from stream_tables import JOINT, WARM, Result, summary_table

from posthoc_bhpeft.checkpoints import read_json, write_json, write_text
from posthoc_bhpeft.streams import Learner, RoundScore, score
from posthoc_bhpeft.streams.methods import StreamMethod
from posthoc_bhpeft.training import TrainingSettings

IMAGES = Path(__file__).parents[1] / "docs" / "images"
CELLS, TUNING = "streams.csv", "stream_tuning.csv"
BASE = "minilm"
# Part of every cell's key: raise it when a cell means something else than before.
PROTOCOL = 1


@dataclass(frozen=True)
class Cell:
    """A method on a stream with a seed.

    Attributes:
        stream: its name.
        seed: of the rows, the weights and the order.
        method: its name in `METHODS`.
        strength: another one than the chosen, while tuning.
    """

    stream: str
    seed: int
    method: str
    strength: float | None = None

    def build(self) -> StreamMethod:
        """The method itself."""
        contender = METHODS[self.method]
        return contender() if self.strength is None else contender.make(self.strength)

    @property
    def label(self) -> str:
        """For people and for the file's name."""
        strength = "" if self.strength is None else f"@{self.strength:g}"
        return f"{self.stream}-{self.seed}-{self.method}{strength}"


@dataclass(frozen=True)
class Setup:
    """What all cells have in common.

    Attributes:
        data: folder with one folder a set.
        output: where cells and first rounds are kept.
        sizes: rows a round.
        settings: of every training; the seed is the cell's.
        results: folder of the committed files: the page, and the cells finished before.
    """

    data: Path
    output: Path
    sizes: Sizes
    settings: TrainingSettings
    results: Path = RESULTS


@cache
def stream_of(setup: Setup, name: str, seed: int) -> Stream:
    """The rounds of a stream, read once a process; the first few of them for tuning."""
    stream = STREAMS[name](setup.data, seed, setup.sizes)
    return replace(stream, rounds=stream.rounds[:TUNING_ROUNDS]) if seed == TUNING_SEED else stream


def settings_of(cell: Cell, setup: Setup) -> TrainingSettings:
    """The common settings with the cell's seed and the parts that the method trains."""
    return replace(setup.settings, seed=cell.seed, peft=METHODS[cell.method].peft)


def identity(cell: Cell, setup: Setup) -> dict[str, Any]:
    """Everything that decides what a cell's figures are, but for the code."""
    stream = stream_of(setup, cell.stream, cell.seed)
    method = repr(cell.build())
    if " at 0x" in method:
        raise ValueError(f"{method} names no settings; give its class a repr without addresses.")
    return {
        "protocol": PROTOCOL,
        "base": BASE,
        "stream": cell.stream,
        "seed": cell.seed,
        "heads": stream.heads.value,
        "rounds": [[r.name, r.train.digest, r.test and r.test.digest] for r in stream.rounds],
        "settings": as_data(settings_of(cell, setup)),
        "method": method,
    }


def name_of(cell: Cell, setup: Setup) -> str:
    """What a cell is kept under; it changes with anything that decides its figures."""
    slug = re.sub(r"[^a-z0-9@.]+", "-", cell.label.lower()).strip("-")
    return keyed(slug, identity(cell, setup), digits=16)


def path_of(cell: Cell, setup: Setup) -> Path:
    """The file of a cell."""
    return setup.output / "cells" / f"{name_of(cell, setup)}.json"


def run_cell(cell: Cell, setup: Setup) -> dict[str, Any]:
    """Learn round after round and score after each of them."""
    stream = stream_of(setup, cell.stream, cell.seed)
    learner = Learner.start(BASE, settings_of(cell, setup), stream.heads, device="cpu")
    first = FirstFit(learner, setup.output / "first")
    run = cell.build().start(learner)
    rounds: list[dict[str, Any]] = []
    scores: list[RoundScore] = []
    for index, round_ in enumerate(stream.rounds):
        before = time.process_time()
        run.learn(round_, index)
        seconds = time.process_time() - before + first.seconds_saved()
        scores += score(run, learner.labels, round_.name, stream.scored(index))
        rounds.append(
            {
                "name": round_.name,
                "rows": len(round_.train),
                "seconds": seconds,
                "state_bytes": run.state_bytes,
                "weights_bytes": sum(t.nbytes for t in learner.snapshot().values()),
            }
        )
    return {
        "cell": cell.label,
        "stream": cell.stream,
        "seed": cell.seed,
        "method": cell.method,
        "one_test": stream.one_test,
        "identity": identity(cell, setup),
        "rounds": rounds,
        "scores": [asdict(s) for s in scores],
    }


def work(cell: Cell, setup: Setup) -> str:
    """Run a cell and write it; what it was, how good and how long, for the log."""
    start = time.perf_counter()
    content = run_cell(cell, setup)
    write_json(path_of(cell, setup), content)
    result = Result.from_json(content)
    accuracy = 100 * result.mean("accuracy")
    return f"{cell.label}: {accuracy:.1f} % after {time.perf_counter() - start:.0f} s"


def run_cells(cells: Sequence[Cell], setup: Setup, workers: int) -> int:
    """Run them in processes of their own; the number that failed."""
    # Fresh processes: threads of this one, such as torch's, do not survive a fork.
    context = multiprocessing.get_context("spawn")
    failed = 0
    with ProcessPoolExecutor(workers, mp_context=context, initializer=quiet) as pool:
        jobs = {pool.submit(work, cell, setup): cell for cell in cells}
        for number, job in enumerate(as_completed(jobs), start=1):
            try:
                said = job.result()
            except Exception:  # the other cells are worth having all the same
                failed += 1
                said = f"{jobs[job].label} FAILED\n{traceback.format_exc()}"
            print(f"[{number}/{len(cells)}] {said}", flush=True)
    return failed


def tuning_cells(streams: Iterable[str], methods: Iterable[str]) -> list[Cell]:
    """Every strength of every method that has one, on the streams and the seed for tuning."""
    return [
        Cell(stream, TUNING_SEED, method, strength)
        for stream in TUNING_STREAMS
        for method in methods
        for strength in METHODS[method].grid
        if stream in streams
    ]


def result_cells(
    streams: Iterable[str], methods: Iterable[str], seeds: Iterable[int]
) -> list[Cell]:
    """All cells, one seed of all streams and methods after the other."""
    return [
        Cell(stream, seed, method) for seed in seeds for stream in streams for method in methods
    ]


def finished(cells: Iterable[Cell], setup: Setup) -> dict[Cell, Result]:
    """Those whose file is there, or that stand in the committed one."""
    committed = from_csv(setup.results / CELLS)
    found = {}
    for cell in cells:
        path = path_of(cell, setup)
        if path.is_file():
            found[cell] = Result.from_json(read_json(path))
        elif path.stem in committed:
            found[cell] = committed[path.stem]
    return found


def tuned(cells: Iterable[Cell], setup: Setup) -> dict[Cell, float]:
    """What each strength came to, of those tried now or before."""
    committed = tuning_from_csv(setup.results / TUNING)
    found = {}
    for cell in cells:
        path = path_of(cell, setup)
        if path.is_file():
            found[cell] = Result.from_json(read_json(path)).mean("accuracy")
        elif path.stem in committed:
            found[cell] = committed[path.stem]
    return found


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    say = parser.add_argument
    say("--data", type=Path, required=True, help="folder with one folder a set")
    say("--streams", nargs="+", default=list(STREAMS), choices=list(STREAMS))
    say("--seeds", nargs="+", type=int, default=[0, 1, 2])
    say("--only-method", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="NAME")
    say("--workers", type=int, default=1, help="processes, one thread each")
    say("--reuse", action=argparse.BooleanOptionalAction, default=True, help="keep finished cells")
    say("--tune", action="store_true", help="try every strength, print the table and stop")
    say("--report", action="store_true", help="run nothing, write the page from finished cells")
    say("--figures", action="store_true", help="draw the picture too")
    say("--output", type=Path, default=Path("outputs/streams"), help="cells are kept here")
    say("--results", type=Path, default=RESULTS, help="streams.md and streams.csv go here")
    say("--images", type=Path, default=IMAGES, help="streams.png goes here")
    for field in fields(Sizes):
        many = "+" if isinstance(field.default, tuple) else None
        say(f"--{field.name}-rows", type=int, nargs=many, default=field.default)
    say("--epochs", type=int, default=6)
    say("--learning-rate", type=float, default=5e-3)
    say("--batch-size", type=int, default=16)
    say("--max-length", type=int, default=40)
    say("--mixed-precision", default="bf16", choices=["no", "bf16"])
    return parser.parse_args(arguments)


def setup_of(options: argparse.Namespace) -> Setup:
    """The options that decide figures, as values."""
    rows = {field.name: getattr(options, f"{field.name}_rows") for field in fields(Sizes)}
    settings = TrainingSettings(
        epochs=options.epochs,
        learning_rate=options.learning_rate,
        batch_size=options.batch_size,
        max_length=options.max_length,
        mixed_precision=options.mixed_precision,
        # Decay pulls towards zero, which is not where any of these methods wants the weights.
        weight_decay=0.0,
    )
    sizes = Sizes(**{name: tuple(v) if isinstance(v, list) else v for name, v in rows.items()})
    return Setup(options.data, options.output, sizes, settings, options.results)


def report(options: argparse.Namespace, setup: Setup) -> None:
    """Write the page, its files and, if asked for, the picture from the cells that are finished."""
    cells = result_cells(known_streams(setup), METHODS, known_seeds(setup, options.seeds))
    found = finished(cells, setup)
    if not found:
        sys.exit(f"No finished cell of these settings under {str(setup.output)!r}; run them first.")
    by_name = {name_of(cell, setup): result for cell, result in found.items()}
    check_kept(by_name, setup)
    results = list(found.values())
    tuning = tuning_table(report_tuning(METHODS, setup))
    write_text(
        setup.results / "streams.md", page(results, tuning, command(DIR=options.data), setup)
    )
    write_text(setup.results / CELLS, as_csv(by_name))
    if options.figures:
        options.images.mkdir(parents=True, exist_ok=True)
        picture(results, (OURS, WARM, JOINT)).savefig(options.images / "streams.png", dpi=150)
    if options.results == RESULTS:
        fill_readme("streams", summary_table(results))
    print(summary_table(results))


def check_kept(by_name: Mapping[str, Result], setup: Setup) -> None:
    """Stop if a method whose committed cells would be dropped has none of these settings.

    Its settings have changed, in truth or only in how they are written: run it again, or take its
    cells out of the committed file by hand.
    """
    committed = from_csv(setup.results / CELLS)
    kept = {(result.stream, result.method) for result in by_name.values()}
    lost = [name for name, r in committed.items() if (r.stream, r.method) not in kept]
    if lost:
        sys.exit(f"{len(lost)} committed cells are of other settings, first {lost[0]}; run those.")


def report_tuning(methods: Iterable[str], setup: Setup) -> dict[Cell, float]:
    """What each strength came to, kept for the next time."""
    found = tuned(tuning_cells(known_streams(setup), methods), setup)
    write_text(
        setup.results / TUNING,
        tuning_as_csv({name_of(cell, setup): accuracy for cell, accuracy in found.items()}),
    )
    return found


def known_streams(setup: Setup) -> list[str]:
    """Streams that any cell is finished of."""
    kept = setup.output / "cells"
    committed = {result.stream for result in from_csv(setup.results / CELLS).values()}
    return [name for name in STREAMS if name in committed or any(kept.glob(f"{name}-*.json"))]


def known_seeds(setup: Setup, wanted: Iterable[int]) -> list[int]:
    """Seeds asked for and those that stand in the committed file: a run must not drop a seed."""
    committed = {result.seed for result in from_csv(setup.results / CELLS).values()}
    return sorted({*wanted, *committed})


def main() -> None:
    """Run what is missing, then write."""
    options = parse()
    setup = setup_of(options)
    cells = result_cells(options.streams, options.only_method, options.seeds)
    if options.tune:
        cells = tuning_cells(options.streams, options.only_method)
    failed = 0
    if not options.report:
        done = (tuned if options.tune else finished)(cells, setup) if options.reuse else {}
        missing = [cell for cell in cells if cell not in done]
        failed = run_cells(missing, setup, options.workers)
    if options.tune:
        print(tuning_table(report_tuning(METHODS, setup)))
    else:
        report(options, setup)
    sys.exit(f"{failed} cells failed, see above" if failed else 0)


if __name__ == "__main__":
    main()
