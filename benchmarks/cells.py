"""What benchmarks of many trainings share: keys of what they keep, and quiet while they run."""

from __future__ import annotations

import argparse
import hashlib
import json
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from pages import RESULTS

from posthoc_bhpeft.checkpoints import write_text
from posthoc_bhpeft.training import TrainingSettings


def keyed(label: str, identity: object, digits: int = 12) -> str:
    """A label with a hash of all that decides a result: something else there, another key.

    Args:
        label: for people.
        identity: what JSON can write.
        digits: of the hash.
    """
    text = json.dumps(identity, sort_keys=True)
    return f"{label}-{hashlib.sha256(text.encode()).hexdigest()[:digits]}"


def as_data(settings: TrainingSettings) -> dict[str, Any]:
    """Settings for a key, so that it stays where one that came later says nothing new."""
    found = asdict(settings)
    return {name: value for name, value in found.items() if (name, value) != ("quantize", "no")}


def parser(about: str) -> argparse.ArgumentParser:
    """What every benchmark of cells asks: where the data are, and where results go.

    Args:
        about: what the command's help begins with.
    """
    found = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--data", type=Path, required=True, help="folder with one folder a set")
    found.add_argument("--results", type=Path, default=RESULTS)
    found.add_argument("--report", action="store_true", help="run nothing, write the page")
    return found


def quiet() -> None:
    """One thread, and no bars: cells say when they are done."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def complete(
    store: Path,
    wanted: Iterable[Any],
    run: Callable[[Any], Sequence[Any]],
    load: Callable[[Path], list[Any]],
    as_csv: Callable[[list[Any]], str],
    told: Callable[[Sequence[Any]], str],
) -> None:
    """Run what the file does not have, and keep every cell as soon as it is done.

    Args:
        store: the file of scores.
        wanted: cells, with a key.
        run: scores one of them; a score has the key as its `cell`.
        load: reads the file.
        as_csv: writes it.
        told: what is printed of a cell's scores.
    """
    for cell in wanted:
        if any(one.cell == cell.key for one in load(store)):
            continue
        start = time.perf_counter()
        found = run(cell)
        # Read again: another process may have added cells meanwhile.
        write_text(store, as_csv([*load(store), *found]))
        print(f"{cell.key}: {told(found)} after {time.perf_counter() - start:.0f} s", flush=True)
