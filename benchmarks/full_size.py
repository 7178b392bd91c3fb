"""Whole sets through the command line: what training, fitting and predicting take.

    OMP_NUM_THREADS=1 python benchmarks/full_size.py --data DIR --output outputs/full_size

where DIR holds one folder a set (`clinc150`, `ag_news`). All rows train, all rows are fitted, all
test rows are predicted, each step in a process of its own, whose processor time and largest
resident memory the operating system tells. A checkpoint that is there is not trained again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pages import RESULTS, markdown, origin, publish


@dataclass(frozen=True)
class Step:
    """What one process took.

    Attributes:
        seconds: Of processor time.
        peak: Largest resident memory, MiB.
        printed: What it printed as JSON.
    """

    seconds: float
    peak: float
    printed: dict[str, object]


def run(arguments: Sequence[str], log: Path) -> Step:
    """Run `bhpeft` in a process of its own."""
    command = [sys.executable, "-m", "posthoc_bhpeft", *arguments, "--json", "--overwrite"]
    with log.open("wb") as out:
        child = os.posix_spawn(
            sys.executable,
            command,
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, out.fileno(), 1)],
        )
        _, status, usage = os.wait4(child, 0)
    if status:
        sys.exit(f"'{' '.join(command)}' stopped with status {status}.")
    printed = json.loads(log.read_text(encoding="utf-8"))
    return Step(usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, printed)


def measure(name: str, options: argparse.Namespace) -> dict[str, Step]:
    """All steps of one set."""
    folder = options.output / name
    folder.mkdir(parents=True, exist_ok=True)
    data, checkpoint, fitted = f"{options.data / name}", f"{folder / 'tuned'}", f"{folder / 'fit'}"
    found = {}
    if not Path(checkpoint, "adapter_config.json").is_file():
        epochs = ["--epochs", str(options.epochs), "--max-length", str(options.max_length)]
        train = ["train", "--data", data, "--output", checkpoint, *epochs]
        found["train"] = run([*train, "--no-early-stopping"], folder / "train.json")
    found["fit"] = run(["fit", checkpoint, "--data", data, "-o", fitted], folder / "fit.json")
    for step, extra in (("predict", []), ("predict, trained weights", ["--predictive", "map"])):
        output = f"{folder / step.replace(', ', '-').replace(' ', '-')}"
        found[step] = run(["predict", fitted, "-o", output, *extra], folder / f"{step}.json")
    return found


def page(found: Mapping[str, Mapping[str, Step]], options: argparse.Namespace) -> str:
    """The page that is committed."""
    return f"""# Whole sets

{origin("torch", DIR=options.data)}; CPU. Hybrid MiniLM, defaults of the command line. Processor \
time of whole processes, loading included; a train step that found its checkpoint was not \
measured again.

{table(found)}
"""


def table(found: Mapping[str, Mapping[str, Step]]) -> str:
    """A row a step of a set."""
    header = ["set", "step", "rows", "processor seconds", "ms a row", "peak, MiB"]
    rows = [
        row(name, step, taken) for name, steps in found.items() for step, taken in steps.items()
    ]
    return markdown([*header, "accuracy", "NLL"], rows)


def row(name: str, step: str, taken: Step) -> list[str]:
    """A line of the table."""
    metrics = taken.printed.get("metrics")
    known = metrics if isinstance(metrics, dict) else {}
    scores = (f"{known[key]:.4f}" if key in known else "–" for key in ("accuracy", "nll"))
    rows = taken.printed.get("rows", taken.printed.get("train_rows"))
    count, each = "–", "–"
    if isinstance(rows, int):
        count, each = str(rows), f"{1000 * taken.seconds / rows:.1f}"
    return [name, step, count, f"{taken.seconds:.0f}", each, f"{taken.peak:.0f}", *scores]


def main() -> None:
    """Parse the command line, run and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with one folder a set")
    parser.add_argument("--sets", nargs="+", default=["clinc150", "ag_news"])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--output", type=Path, default=Path("outputs/full_size"))
    parser.add_argument("--results", type=Path, default=RESULTS / "full_size.md")
    options = parser.parse_args()
    found = {}
    for name in options.sets:
        found[name] = measure(name, options)
        # A set takes long: what is known is written before the next one starts.
        publish(page(found, options), options.results)


if __name__ == "__main__":
    main()
